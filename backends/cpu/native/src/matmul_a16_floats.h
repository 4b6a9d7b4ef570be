// Floats of panels as f32: widened into a tile, or in registers for a few rows.
#pragma once
#include "matmul_a16.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// W columns of k and of k + 1 of a panel of floats of 16 bits, from `at` on: its vector v.
template <int32_t T> inline void load_two(const uint8_t *at, int v, F &first, F &second) {
    if constexpr (T == BF16) {  // a dword holds both, the lower k in its lower half
        const I pair = load_as<I>(at + v * W * 4);
        first = as_float(pair << 16), second = as_float(pair & int32_t(0xffff0000));
    } else {
        first = load_half(at + v * W * 2), second = load_half(at + (PANEL + v * W) * 2);
    }
}

// R rows, for which floats of 16 bits are widened in registers: sums [R][32] = the rows times one panel. In the order in which
// a tile is summed, so that a row's result does not depend on how many there are; one chain for each sum keeps up with memory.
template <int R, int32_t T>
void rows_by_floats(const uint8_t *panel, int64_t k, const float *x, int64_t x_stride, float *sums) {
    constexpr int HERE = together(R), TWO_BYTES = 2 * PANEL * 2;
    for (int64_t begin = 0; begin < k; begin += TILE_K) {
        const int64_t end = std::min(k, begin + TILE_K);
        for (int first = 0; first < VECTORS; first += HERE) {
            const uint8_t *two = panel;
            F dot[R][HERE] = {};
            auto add = [&](int64_t at) {
                F one[HERE], other[HERE];
                for (int v = 0; v < HERE; v++) load_two<T>(two, first + v, one[v], other[v]);
                two += TWO_BYTES;
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < HERE; v++) dot[r][v] += one[v] * set(x[r * x_stride + at]);
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < HERE; v++) dot[r][v] += other[v] * set(x[r * x_stride + at + 1]);
            };
            int64_t at = begin;
            for (; at + 4 <= end; at += 4) {
                if (first == 0) ask_ahead(two, 2 * TWO_BYTES);
                add(at), add(at + 2);
            }
            for (; at + 2 <= end; at += 2) add(at);
            for (int v = 0; at < end && v < HERE; v++) {
                F one;
                if constexpr (T == BF16) one = as_float(load_as<I>(two + (first + v) * W * 4) << 16);
                else one = load_half(two + (first + v) * W * 2);
                for (int r = 0; r < R; r++) dot[r][v] += one * set(x[r * x_stride + at]);
            }
            for (int r = 0; r < R; r++)
                for (int v = 0; v < HERE; v++) {
                    float *to = sums + r * PANEL + (first + v) * W;
                    store(to, load(to) + dot[r][v]);
                }
        }
        panel += (end - begin) / 2 * TWO_BYTES;  // odd ends are the last
    }
}

using FewFloats = void (*)(const uint8_t *, int64_t, const float *, int64_t, float *);

template <int32_t T, size_t... R> FewFloats floats_by_rows(int64_t rows, std::index_sequence<R...>) {
    constexpr FewFloats all[] = {rows_by_floats<int(R) + 1, T>...};
    return all[rows - 1];
}

// What multiplies so many rows, up to MOST_IN_REGISTERS, by floats of 16 bits.
inline FewFloats few_floats(int32_t dtype, int64_t rows) {
    constexpr auto counts = std::make_index_sequence<MOST_IN_REGISTERS>();
    return dtype == BF16 ? floats_by_rows<BF16>(rows, counts) : floats_by_rows<F16>(rows, counts);
}

// A piece [first, first + count) of a panel of floats as f32.
inline const float *float_tile(int32_t dtype, const uint8_t *panel, int64_t first, int64_t count, float *tile) {
    if (dtype == F32) return reinterpret_cast<const float *>(panel) + first * PANEL;
    if (dtype == F16) {
        for (int64_t i = 0; i < count * PANEL; i += W) store(tile + i, load_half(panel + (first * PANEL + i) * 2));
        return tile;
    }
    for (int64_t k = 0; k < count; k += 2)  // a dword holds k and k + 1, the lower k in its lower half
        for (int v = 0; v < VECTORS; v++) {
            const I pair = load_as<I>(panel + ((first + k) / 2 * PANEL + v * W) * 4);
            store(tile + k * PANEL + v * W, as_float(pair << 16));
            if (k + 1 < count) store(tile + (k + 1) * PANEL + v * W, as_float(pair & int32_t(0xffff0000)));
        }
    return tile;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
