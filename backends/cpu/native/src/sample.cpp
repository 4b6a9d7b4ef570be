// From logits to a token by a given uniform number. Every setting keeps a prefix of the tokens in falling order of
// their logits, so that no more of that order is ever made than the last decision needs: first the few hundred largest,
// found by the maxima of blocks, and then, if these did not decide, four times as many, and so on.
#include <functional>

#include "argmax.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int64_t BLOCK = 64, FIRST = 256;

// One request's logits, penalized, and their weights e^((l - largest) / temperature), which make probabilities when
// divided by their sum.
class Candidates {
   public:
    // memory: 20 bytes for every logit, and 64.
    Candidates(unsigned char *memory, int64_t width)
        : order(reinterpret_cast<uint64_t *>(memory)), maxima(reinterpret_cast<float *>(order + width)),
          logits(maxima + width), weights(logits + width), width(width) {}

    float *values() { return logits; }

    // Shifted before it is divided, so that no temperature overflows. One way of computing a weight for all purposes:
    // sums and their parts have to agree.
    F weights_of(F logit) const { return exp((logit - top) / temperature); }

    // The sum of all weights, of logits of which `largest` is the largest.
    double begin(float largest_logit, float by_temperature) {
        sorted = taken = 0, top = largest_logit, temperature = by_temperature;
        typedef float Half __attribute__((vector_size(W * 2)));
        typedef double Sums __attribute__((vector_size(W * 4)));
        Sums sums[2] = {};
        int64_t i = 0;
        for (; i + W <= width; i += W) {
            const F w = weights_of(load(logits + i));
            Half half[2];
            __builtin_memcpy(half, &w, sizeof half);
            for (int j = 0; j < 2; j++) sums[j] += __builtin_convertvector(half[j], Sums);
        }
        double total = 0;
        for (int lane = 0; lane < W / 2; lane++) total += sums[0][lane] + sums[1][lane];
        for (; i < width; i++) total += double(weights_of(set(logits[i]))[0]);
        return total;
    }

    void find_maxima() {
        for (int64_t block = 0; block * BLOCK < width; block++) {
            float most = -INFINITY;
            int64_t end = std::min(width, (block + 1) * BLOCK), i = block * BLOCK;
            F lanes = set(-INFINITY);
            for (; i + W <= end; i += W) lanes = max(lanes, load(logits + i));
            most = largest(lanes);
            for (; i < end; i++) most = std::max(most, logits[i]);
            maxima[block] = most;
        }
    }

    // The token of a rank in falling order, and its weight; and the order up to there.
    int64_t token(int64_t rank) {
        while (rank >= sorted) extend();
        return index_of(order[rank]);
    }
    double weight(int64_t rank) {
        while (rank >= sorted) extend();
        return double(weights[rank]);
    }

   private:
    uint64_t *order;  // [0, sorted): in order; [sorted, taken): all that come next, in none
    float *maxima;    // of blocks
    float *logits;
    float *weights;  // [0, sorted)
    float top = 0, temperature = 1;
    int64_t width, sorted = 0, taken = 0;
    float threshold = 0;  // what is not below it is in `order`

    void extend() {
        int64_t blocks = (width + BLOCK - 1) / BLOCK, next;
        if (taken == 0 && blocks > FIRST) {
            // At least FIRST logits are not below the FIRST largest maximum of a block.
            float *copy = reinterpret_cast<float *>(order);
            std::copy(maxima, maxima + blocks, copy);
            std::nth_element(copy, copy + FIRST - 1, copy + blocks, std::greater<float>());
            float least = copy[FIRST - 1];
            for (int64_t block = 0; block < blocks; block++) {
                if (!(maxima[block] >= least)) continue;
                for (int64_t i = block * BLOCK, end = std::min(width, i + BLOCK); i < end; i++)
                    if (logits[i] >= least) order[taken++] = order_key(logits[i], i);
            }
            threshold = least;
            next = std::min(taken, 4 * FIRST);  // where almost all are equal, almost all have been taken
        } else {
            if (taken < width) {
                bool all = taken == 0;
                for (int64_t i = 0; i < width; i++)
                    if (all || !(logits[i] >= threshold)) order[taken++] = order_key(logits[i], i);
            }
            next = std::min(width, std::max(4 * sorted, FIRST));
        }
        if (next < taken) std::nth_element(order + sorted, order + next, order + taken, std::greater<uint64_t>());
        std::sort(order + sorted, order + next, std::greater<uint64_t>());
        for (int64_t rank = sorted; rank < next; rank += W) {
            F some = set(-INFINITY);
            for (int lane = 0; lane < W && rank + lane < next; lane++) some[lane] = logits[index_of(order[rank + lane])];
            store(weights + rank, weights_of(some));
        }
        sorted = next;
    }

};

static void penalize(const SampleRows &batch, int64_t row, float *logits) {
    float repetition = batch.repetition[row], presence = batch.presence[row], frequency = batch.frequency[row];
    for (int64_t i = batch.history_start[row]; i < batch.history_start[row + 1]; i++) {
        float &logit = logits[batch.history_ids[i]];
        float seen = logit > 0 ? logit / repetition : logit * repetition;
        logit = seen - frequency * batch.history_counts[i] - presence;
    }
}

static int64_t draw(const SampleRows &batch, int64_t row, Candidates &candidates, const Best &best, int64_t width) {
    double total = candidates.begin(best.value, batch.temperature[row]);
    if (!(total >= 1.0)) return best.index;  // an infinite logit or NaN: there are no probabilities

    candidates.find_maxima();
    int64_t kept = width, top_k = batch.top_k[row];
    if (top_k > 0 && top_k < width) {
        kept = top_k, total = 0;
        for (int64_t rank = 0; rank < kept; rank++) total += candidates.weight(rank);
    }
    double top_p = batch.top_p[row], min_p = batch.min_p[row];
    if (top_p < 1 || min_p > 0) {
        double mass = 0;
        int64_t rank = 0;
        for (; rank < kept; rank++) {
            double w = candidates.weight(rank);
            if (rank && (mass >= top_p * total || w < min_p)) break;
            mass += w;
        }
        kept = rank, total = mass;
    }
    double target = double(batch.uniform[row]) * total, mass = 0;
    int64_t token = best.index;
    for (int64_t rank = 0; rank < kept; rank++) {
        double w = candidates.weight(rank);
        if (w == 0) break;  // rounding has eaten what was left
        token = candidates.token(rank);
        mass += w;
        if (mass > target) break;
    }
    return token;
}

void sample(const Command *command, Worker &worker) {
    const Sample &c = *static_cast<const Sample *>(command);
    const SampleRows &batch = *c.batch;
    Candidates candidates(worker.shared + c.workspace / worker.count / 64 * 64 * worker.index, c.width);
    float *logits = candidates.values();
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    for (int64_t row = begin; row < end; row++) {
        const void *x = at(c.logits, row * c.logits_stride, c.dtype);
        int64_t i = 0;
        for (; i + W <= c.width; i += W) store(logits + i, load_any(x, i, c.dtype));
        for (; i < c.width; i++) logits[i] = load_one(x, i, c.dtype);
        penalize(batch, row, logits);
        Best best = best_of<F32>(logits, 0, c.width);
        c.y[row] = batch.temperature[row] == 0 ? best.index : draw(batch, row, candidates, best, c.width);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
