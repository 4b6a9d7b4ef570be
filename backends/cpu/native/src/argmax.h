// The largest of a row, ties to the lowest index; the first NaN where there is one.
#pragma once
#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

struct Best {
    float value;
    int64_t index;
};

inline bool better(const Best &a, const Best &b) { return order_key(a.value, a.index) > order_key(b.value, b.index); }

inline bool any(I mask) {
    int32_t found = 0;
    for (int i = 0; i < W; i++) found |= mask[i];
    return found != 0;
}

// Of elements [begin, end), at least one. Blocks are searched for their largest value alone, and the first block that
// has the largest of all once more, for its place.
template <int32_t T> inline Best best_of(const void *x, int64_t begin, int64_t end) {
    constexpr int64_t BLOCK = 32 * W;
    Best best{-INFINITY, begin};
    int64_t place = begin;
    for (int64_t from = begin; from < end; from += BLOCK) {
        int64_t to = std::min(end, from + BLOCK), i = from;
        F most[4] = {set(-INFINITY), set(-INFINITY), set(-INFINITY), set(-INFINITY)};
        I bad[2] = {};
        for (; i + 4 * W <= to; i += 4 * W)
            for (int lane = 0; lane < 4; lane++) {
                F v = load_t<T>(x, i + lane * W);
                most[lane] = max(most[lane], v);
                bad[lane & 1] |= v != v;
            }
        float value = largest(max(max(most[0], most[1]), max(most[2], most[3])));
        bool nan = any(bad[0] | bad[1]);
        for (; i < to; i++) {
            float v = load_one(x, i, T);
            if (v > value) value = v;
            nan |= v != v;
        }
        if (nan) {
            for (i = from; load_one(x, i, T) == load_one(x, i, T);) i++;
            return {load_one(x, i, T), i};
        }
        if (value > best.value) best.value = value, place = from;
    }
    while (!(load_one(x, place, T) == best.value)) place++;
    best.index = place;
    return best;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
