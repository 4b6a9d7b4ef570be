// Codes of panels as f32: widened into a tile, or in registers for a few rows.
#pragma once
#include "matmul_a16.h"
#include "small_floats.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// What each integer of up to five bits stands for, as far as two vectors hold them; or each nibble of IQ4.
struct Numbers {
    F low, high;

    Numbers(const Panels &w, int32_t zero_offset) {
        auto number = [&](int i) { return w.code == IQ4 ? float(IQ4_INTEGERS[i % 16]) : float(i - zero_offset); };
        for (int i = 0; i < W; i++) low[i] = number(i), high[i] = number(W + i);
    }
};

// What codes in the lowest bits of each element stand for: integers less an offset, or small floats.
template <int CODE, int BITS> inline F number(I codes, I mask, I offset, [[maybe_unused]] const Numbers &numbers) {
#if OPSOCKET_AVX512
    // Permutes look at four bits of an index, or at five.
    if constexpr (CODE == IQ4 || (CODE == INTEGERS && BITS == 4))
        return (F)_mm512_permutexvar_ps((__m512i)codes, (__m512)numbers.low);
    if constexpr (CODE == INTEGERS && BITS == 5)
        return (F)_mm512_permutex2var_ps((__m512)numbers.low, (__m512i)codes, (__m512)numbers.high);
#elif OPSOCKET_AVX2
    if constexpr (CODE == IQ4) {
        const __m256 low = _mm256_permutevar8x32_ps((__m256)numbers.low, (__m256i)codes);
        const __m256 high = _mm256_permutevar8x32_ps((__m256)numbers.high, (__m256i)codes);
        return (F)_mm256_blendv_ps(low, high, (__m256)(codes << 28));
    }
#endif
    if constexpr (CODE == IQ4) {
        F v;
        for (int i = 0; i < W; i++) v[i] = float(IQ4_INTEGERS[codes[i] & 15]);
        return v;
    } else if constexpr (CODE == E2M1) return twice_e2m1(codes);
    else return convert((codes & mask) - offset);
}

// Widen k = first .. first + count - 1 of group g of a panel, less the zero offset, times the scales, less the minimums.
template <int CODE, int BITS, int SLAB>
void widen(const Panels &w, const uint8_t *panel, int64_t g, int64_t first, int64_t count, float *tile) {
    const uint8_t *codes = w.group_at(panel, g) + first / SLAB * w.slab_bytes();
    const Scales scales = scales_of(w, panel, g, 0), minimums = scales_of(w, panel, g, 1);
    const I mask = set(int32_t((1 << BITS) - 1)), offset = set(int32_t(w.zero_offset));
    const Numbers numbers(w, w.zero_offset);
    F scale[VECTORS], minimum[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        scale[v] = scales.vector(v * W);
        minimum[v] = w.has_minimum ? minimums.vector(v * W) : set(0.0f);
    }
    for (int64_t at = 0; at < count; at += SLAB, codes += SLAB * PANEL * BITS / 8) {
        for (int step = 0; step < SLAB / 4; step++, tile += 4 * PANEL) {
            for (int v = 0; v < VECTORS; v++) {
                const I four = codes_of_step<BITS, SLAB>(codes, step, v);
                [[maybe_unused]] F floats[4];
                if constexpr (CODE == E4M3FN) four_e4m3fn(four, floats);
                for (int b = 0; b < 4; b++) {
                    F value;
                    if constexpr (CODE == E4M3FN) value = floats[b] * E4M3FN_UNIT * scale[v];
                    else value = number<CODE, BITS>(four >> (8 * b), mask, offset, numbers) * scale[v];
                    if (w.has_minimum) value = value - minimum[v];
                    store(tile + b * PANEL + v * W, value);
                }
            }
        }
    }
}

using Widen = void (*)(const Panels &, const uint8_t *, int64_t, int64_t, int64_t, float *);

inline Widen widen_of(const Panels &w) {
    Widen found = nullptr;
    if (w.code == E4M3FN) return w.slab() == 32 ? widen<E4M3FN, 8, 32> : widen<E4M3FN, 8, 16>;
    if (w.code == E2M1) return widen<E2M1, 4, 32>;
    if (w.code == IQ4) return widen<IQ4, 4, 32>;
    by_form(w, [&](auto bits, auto slab) { found = widen<INTEGERS, decltype(bits)::value, decltype(slab)::value>; });
    return found;
}

// R rows, for which codes are widened in registers. Group by group: sums += scale (x . stored - offset total) - minimum
// total, where total is the sum of a row's part; totals of [R][groups], sums of [R][32].
template <int R, int BITS, int CODE, int SLAB>
void rows_by_groups(const Panels &w, const uint8_t *panel, const float *x, int64_t x_stride, const float *totals,
                    float *sums) {
    constexpr int HERE = together(R), FIELDS = 8 / low_bits(BITS), STEPS = SLAB / 4 / FIELDS;
    constexpr int CHAINS = R * HERE >= 8 ? 1 : R * HERE >= 4 ? 2 : 4;  // of a sum, which would wait for itself
    constexpr int64_t SLAB_BYTES = SLAB * PANEL * BITS / 8, RUN = 256 / SLAB;  // slabs of a sum: no longer chains than about a tile's
    const int64_t groups = w.k / w.group, block_groups = w.block() / w.group, slabs = w.group / SLAB;
    const int64_t head_bytes = w.head_bytes(), tail_bytes = w.tail_bytes();
    const int64_t code_bytes = w.code_bytes(), scale_bytes = w.scale_bytes();
    const bool has_minimum = w.has_minimum, scale_f32 = w.scale_f32;
    const float zero = CODE == INTEGERS ? float(w.zero_offset) : 0.0f;
    const I mask = set(int32_t((1 << BITS) - 1));
    const Numbers numbers(w, 0);
    const uint8_t *codes = panel, *head = panel;
    for (int64_t g = 0, in_block = 0; g < groups; g++, in_block = in_block + 1 < block_groups ? in_block + 1 : 0) {
        if (head_bytes && in_block == 0) {
            ask_ahead(codes, head_bytes);
            head = codes, codes += head_bytes;
        }
        Scales scales{codes + code_bytes, nullptr, scale_f32}, minimums{scales.values + scale_bytes, nullptr, scale_f32};
        if (head_bytes)
            scales = scales_at(w, codes, head, in_block, 0), minimums = scales_at(w, codes, head, in_block, 1);
        for (int64_t left = slabs; left;) {
            const int64_t run = left < RUN ? left : RUN;
            left -= run;
            for (int first = 0; first < VECTORS; first += HERE) {
                const uint8_t *slab = codes;
                const float *row = x;
                F dot[R][HERE][CHAINS];
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < HERE; v++)
                        for (int chain = 0; chain < CHAINS; chain++) dot[r][v][chain] = set(0.0f);
                for (int64_t s = run; s; s--, slab += SLAB_BYTES, row += SLAB) {
                    if (first == 0) ask_ahead(slab, SLAB_BYTES);
#pragma GCC unroll 2
                    for (int step = 0; step < STEPS; step++)
#pragma GCC unroll 4
                        for (int field = 0; field < FIELDS; field++) {
                            constexpr bool WHOLE = low_bits(BITS) == BITS;  // codes lie in one place, from bit `from` on
                            const int from = WHOLE ? field * BITS : 0;
                            I four[HERE];
                            for (int v = 0; v < HERE; v++)
                                four[v] = WHOLE ? load_as<I>(slab + step * PANEL * 4 + (first + v) * W * 4)
                                                : codes_of_step<BITS, SLAB>(slab, field * STEPS + step, first + v);
                            [[maybe_unused]] F floats[HERE][4];
                            for (int v = 0; v < HERE; v++)
                                if constexpr (CODE == E4M3FN) four_e4m3fn(four[v], floats[v]);
#pragma GCC unroll 4
                            for (int b = 0; b < 4; b++) {
                                F value[HERE];
                                for (int v = 0; v < HERE; v++) {
                                    if constexpr (CODE == E4M3FN) value[v] = floats[v][b];
                                    else value[v] = number<CODE, BITS>(four[v] >> (8 * b + from), mask, I{}, numbers);
                                }
#pragma GCC unroll 8
                                for (int r = 0; r < R; r++) {
                                    const F factor = set(row[r * x_stride + (field * STEPS + step) * 4 + b]);
                                    for (int v = 0; v < HERE; v++) dot[r][v][b % CHAINS] += value[v] * factor;
                                }
                            }
                        }
                }
                for (int v = 0; v < HERE; v++) {
                    const F scale = scales.vector((first + v) * W);
                    const F minimum = has_minimum ? minimums.vector((first + v) * W) : set(0.0f);
                    for (int r = 0; r < R; r++) {
                        F sum = dot[r][v][0];
                        for (int chain = 1; chain < CHAINS; chain++) sum += dot[r][v][chain];
                        if (CODE == E4M3FN) sum = sum * E4M3FN_UNIT;
                        const F total = set(left ? 0.0f : totals[r * groups + g]);
                        float *to = sums + r * PANEL + (first + v) * W;
                        F all = load(to) + scale * (sum - total * zero);
                        if (has_minimum) all -= minimum * total;
                        store(to, all);
                    }
                }
            }
            codes += run * SLAB_BYTES, x += run * SLAB;
        }
        ask_ahead(codes, tail_bytes);
        codes += tail_bytes;
    }
}

using FewRows = void (*)(const Panels &, const uint8_t *, const float *, int64_t, const float *, float *);

template <int BITS, int CODE, int SLAB, size_t... R> FewRows by_rows(int64_t rows, std::index_sequence<R...>) {
    constexpr FewRows all[] = {rows_by_groups<int(R) + 1, BITS, CODE, SLAB>...};
    return all[rows - 1];
}

inline FewRows few_rows(const Panels &w, int64_t rows) {
    constexpr auto counts = std::make_index_sequence<MOST_IN_REGISTERS>();
    if (w.code == E4M3FN)
        return w.slab() == 32 ? by_rows<8, E4M3FN, 32>(rows, counts) : by_rows<8, E4M3FN, 16>(rows, counts);
    if (w.code == E2M1) return by_rows<4, E2M1, 32>(rows, counts);
    if (w.code == IQ4) return by_rows<4, IQ4, 32>(rows, counts);
    FewRows found = nullptr;
    by_form(w, [&](auto bits, auto slab) {
        found = by_rows<decltype(bits)::value, INTEGERS, decltype(slab)::value>(rows, counts);
    });
    return found;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
