// Loops over rows of activations, which several operators share.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kernels.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// Call f with the dtype as a compile-time constant.
template <class Function> inline void by_dtype(int32_t dtype, Function f) {
    if (dtype == F32) f(std::integral_constant<int32_t, F32>{});
    else if (dtype == F16) f(std::integral_constant<int32_t, F16>{});
    else f(std::integral_constant<int32_t, BF16>{});
}

// A float as an unsigned integer that orders as floats do, -0 as 0, NaN above all.
inline uint32_t rank_of(float x) {
    if (x != x) return ~0u;
    x += 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// One number that orders by falling value, then rising index, where the larger comes first.
inline uint64_t order_key(float x, int64_t index) { return uint64_t(rank_of(x)) << 32 | uint32_t(~index); }
inline int64_t index_of(uint64_t key) { return int64_t(~uint32_t(key)); }

// y[r, i] = f(a[r, i], b[r, i]) on vectors. Pieces of a row, so that one long row is shared too; short ones are not.
template <class Function>
inline void combine_rows(Worker &worker, int64_t rows, int64_t width, int32_t dtype, const void *a, int64_t a_stride,
                         const void *b, int64_t b_stride, void *y, int64_t y_stride, Function f) {
    constexpr int64_t PIECE = 2048;
    int64_t pieces = (width + PIECE - 1) / PIECE, begin, end;
    worker.share(rows * pieces, begin, end);
    by_dtype(dtype, [&](auto type) {
        constexpr int32_t T = type;
        for (int64_t i = begin; i < end; i++) {
            int64_t row = i / pieces, from = i % pieces * PIECE, to = std::min(width, from + PIECE);
            const void *p = at(a, row * a_stride, T), *q = at(b, row * b_stride, T);
            void *out = at(y, row * y_stride, T);
            for (; from + W <= to; from += W) store_t<T>(out, from, f(load_t<T>(p, from), load_t<T>(q, from)));
            int rest = int(to - from);
            if (rest) store_part(out, from, T, f(load_part(p, from, T, rest), load_part(q, from, T, rest)), rest);
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
