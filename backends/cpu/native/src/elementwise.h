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

// a + b, for `combine`.
struct Sum {
    template <int N> void operator()(F (&a)[N], const F (&b)[N]) const {
        for (int i = 0; i < N; i++) a[i] += b[i];
    }
};

// y[i] = f(a[i], b[i]), begin <= i < end. f takes arrays of vectors, of any size, and leaves its result in the first.
template <int32_t T, class Function>
inline void combine(const void *a, const void *b, void *y, int64_t begin, int64_t end, Function f) {
    constexpr int N = 4;
    int64_t i = begin;
    for (; i + N * W <= end; i += N * W) {
        F p[N], q[N];
        for (int j = 0; j < N; j++) p[j] = load_t<T>(a, i + j * W), q[j] = load_t<T>(b, i + j * W);
        f(p, q);
        for (int j = 0; j < N; j += 2) store_two<T>(y, i + j * W, p[j], p[j + 1]);
    }
    for (; i < end; i += W) {
        const int rest = int(std::min<int64_t>(W, end - i));
        F p[1] = {load_part(a, i, T, rest)}, q[1] = {load_part(b, i, T, rest)};
        f(p, q);
        store_part(y, i, T, p[0], rest);
    }
}

// The same of rows, in pieces, so that one long row is shared too; short ones are not.
template <class Function>
inline void combine_rows(Worker &worker, int64_t rows, int64_t width, int32_t dtype, const void *a, int64_t a_stride,
                         const void *b, int64_t b_stride, void *y, int64_t y_stride, Function f) {
    constexpr int64_t PIECE = 2048;
    int64_t pieces = (width + PIECE - 1) / PIECE, begin, end;
    worker.share(rows * pieces, begin, end);
    by_dtype(dtype, [&](auto type) {
        constexpr int32_t T = type;
        for (int64_t i = begin; i < end; i++) {
            const int64_t row = i / pieces, from = i % pieces * PIECE;
            combine<T>(at(a, row * a_stride, T), at(b, row * b_stride, T), at(y, row * y_stride, T), from,
                       std::min(width, from + PIECE), f);
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
