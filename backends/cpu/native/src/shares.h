// Pieces of several products, one product's after the other's, in shares of what they cost: a run of pieces for each thread.
#pragma once
#include <algorithm>

#include "pool.h"

namespace opsocket {

class Shares {
    int64_t from, to, before = 0;

    int64_t until(int64_t mark, int64_t pieces, int64_t cost) const {
        return (std::clamp<int64_t>(mark - before, 0, cost) * pieces + cost - 1) / cost;
    }

   public:
    // cost: of all pieces of all products.
    Shares(const Worker &worker, int64_t cost) { worker.share(cost, from, to); }

    // This thread's of the next product's pieces, which cost so much together, each as much as another.
    void take(int64_t pieces, int64_t cost, int64_t &begin, int64_t &end) {
        begin = until(from, pieces, cost), end = until(to, pieces, cost);
        before += cost;
    }
    // Whether no product that follows has pieces of this thread.
    bool are_taken() const { return before >= to; }
};

}  // namespace opsocket
