// y = x W^T + b with float activations: codes are widened to f32 and multiplied there. Also the product of rows sorted by
// expert, each range with a weight of its own.
//
// A few rows: as digits of integers, where those pay (matmul_a16_digits.h). Or codes are widened in registers, once for all
// of them. More rows: a piece of a panel is widened once into this
// thread's memory, [k][32] of f32, and all rows meet it there.
#include <algorithm>
#include <limits>
#include <utility>

#include "kernels.h"
#include "matmul_a16_digits.h"
#include "small_floats.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

namespace {

// Rows of x that meet one weight: x and y are those of the first.
struct Product {
    const Panels &weight;
    const int64_t *permutation;
    const float *bias;
    int64_t rows, n, k;
    const void *x;
    int64_t x_stride;
    void *y;
    int64_t y_stride;
    int32_t x_dtype, y_dtype, float_dtype;

    Product(const MatmulA16 &c, int64_t expert, int64_t first, int64_t count)
        : weight(c.weights[expert].panels), permutation(c.weights[expert].permutation),
          bias(c.bias ? c.bias + expert * c.n : nullptr), rows(count), n(c.n), k(c.k),
          x(at(c.x, first * c.x_stride, c.x_dtype)), x_stride(c.x_stride), y(at(c.y, first * c.y_stride, c.y_dtype)),
          y_stride(c.y_stride), x_dtype(c.x_dtype), y_dtype(c.y_dtype), float_dtype(c.float_dtype) {}

    int64_t padded() const { return float_dtype >= 0 ? k : weight.k; }
    int64_t panels() const { return (n + PANEL - 1) / PANEL; }
};

// visit(expert, first, count) for each weight that rows meet, of the first `rows` of x.
template <class Visit> void each_weight(const MatmulA16 &c, int64_t rows, const Visit &visit) {
    if (!c.offsets) return visit(int64_t(0), int64_t(0), rows);
    for (int64_t e = 0; e < c.experts; e++) {
        const int64_t first = std::max<int64_t>(0, c.offsets[e]), last = std::min(rows, c.offsets[e + 1]);
        if (first < last) visit(e, first, last - first);
    }
}

constexpr int V = PANEL / W;                 // vectors that hold one k of a panel
constexpr int ROWS = W == 16 ? 8 : W == 8 ? 3 : 1;  // that meet a tile at a time: registers decide
constexpr int64_t TILE_K = W == 16 ? 192 : 128;  // k of a widened piece: 24 or 16 KB of a first-level cache's 48 or 32
constexpr int64_t BLOCK_ROWS = 384;          // rows whose sums are kept at a time
constexpr int64_t FEW = 16;                  // rows up to which a panel takes no longer than to agree on who takes it
constexpr int MOST_IN_REGISTERS = W == 16 ? 8 : W == 8 ? 2 : 1;  // rows for which codes are widened in registers
constexpr int64_t OWN_ROWS = 48;             // of each thread: from so many on it multiplies its own, as in matmul_a8.cpp

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
    F scale[V], minimum[V];
    for (int v = 0; v < V; v++) {
        scale[v] = scales.vector(v * W);
        minimum[v] = w.has_minimum ? minimums.vector(v * W) : set(0.0f);
    }
    for (int64_t at = 0; at < count; at += SLAB, codes += SLAB * PANEL * BITS / 8) {
        for (int step = 0; step < SLAB / 4; step++, tile += 4 * PANEL) {
            for (int v = 0; v < V; v++) {
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

Widen widen_of(const Panels &w) {
    Widen found = nullptr;
    if (w.code == E4M3FN) return w.slab() == 32 ? widen<E4M3FN, 8, 32> : widen<E4M3FN, 8, 16>;
    if (w.code == E2M1) return widen<E2M1, 4, 32>;
    if (w.code == IQ4) return widen<IQ4, 4, 32>;
    by_form(w, [&](auto bits, auto slab) { found = widen<INTEGERS, decltype(bits)::value, decltype(slab)::value>; });
    return found;
}

// sums[r][32] += x[r][0 .. count) tile[count][32], R rows. A tile's sum is its own: in one chain through all of k roundings
// that lean one way would add up.
template <int R> void multiply(const float *x, int64_t x_stride, const float *tile, int64_t count, float *sums) {
    F s[R][V] = {};
#pragma GCC unroll 4  // of what a k takes beside its products a twelfth is saved, more than by more rows
    for (int64_t k = 0; k < count; k++) {
        F t[V];
        for (int v = 0; v < V; v++) t[v] = load(tile + k * PANEL + v * W);
        for (int r = 0; r < R; r++) {
            const F factor = set(x[r * x_stride + k]);
            for (int v = 0; v < V; v++) s[r][v] = s[r][v] + factor * t[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(sums + r * PANEL + v * W, load(sums + r * PANEL + v * W) + s[r][v]);
}

template <int R = ROWS>
void multiply_rows(int rows, const float *x, int64_t x_stride, const float *tile, int64_t count, float *sums) {
    if constexpr (R > 0) {
        if (rows == R) multiply<R>(x, x_stride, tile, count, sums);
        else multiply_rows<R - 1>(rows, x, x_stride, tile, count, sums);
    }
}

// R rows, for which codes are widened in registers. Group by group: sums += scale (x . stored - offset total) - minimum
// total, where total is the sum of a row's part; totals of [R][groups], sums of [R][32].
template <int R, int BITS, int CODE, int SLAB>
void rows_by_groups(const Panels &w, const uint8_t *panel, const float *x, int64_t x_stride, const float *totals,
                    float *sums) {
    constexpr int FIELDS = 8 / low_bits(BITS), STEPS = SLAB / 4 / FIELDS;
    constexpr int CHAINS = R * V >= 8 ? 1 : R * V >= 4 ? 2 : 4;  // of a sum, which would wait for itself
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
            F dot[R][V][CHAINS];
            for (int r = 0; r < R; r++)
                for (int v = 0; v < V; v++)
                    for (int chain = 0; chain < CHAINS; chain++) dot[r][v][chain] = set(0.0f);
            for (int64_t s = run; s; s--, codes += SLAB_BYTES, x += SLAB) {
                ask_ahead(codes, SLAB_BYTES);
#pragma GCC unroll 2
                for (int step = 0; step < STEPS; step++)
#pragma GCC unroll 4
                    for (int field = 0; field < FIELDS; field++) {
                        constexpr bool WHOLE = low_bits(BITS) == BITS;  // codes lie in one place, from bit `from` on
                        const int from = WHOLE ? field * BITS : 0;
                        I four[V];
                        for (int v = 0; v < V; v++)
                            four[v] = WHOLE ? load_as<I>(codes + step * PANEL * 4 + v * W * 4)
                                            : codes_of_step<BITS, SLAB>(codes, field * STEPS + step, v);
                        [[maybe_unused]] F floats[V][4];
                        for (int v = 0; v < V; v++)
                            if constexpr (CODE == E4M3FN) four_e4m3fn(four[v], floats[v]);
#pragma GCC unroll 4
                        for (int b = 0; b < 4; b++) {
                            F value[V];
                            for (int v = 0; v < V; v++) {
                                if constexpr (CODE == E4M3FN) value[v] = floats[v][b];
                                else value[v] = number<CODE, BITS>(four[v] >> (8 * b + from), mask, I{}, numbers);
                            }
#pragma GCC unroll 8
                            for (int r = 0; r < R; r++) {
                                const F factor = set(x[r * x_stride + (field * STEPS + step) * 4 + b]);
                                for (int v = 0; v < V; v++) dot[r][v][b % CHAINS] += value[v] * factor;
                            }
                        }
                    }
            }
            left -= run;
            for (int v = 0; v < V; v++) {
                const F scale = scales.vector(v * W);
                const F minimum = has_minimum ? minimums.vector(v * W) : set(0.0f);
                for (int r = 0; r < R; r++) {
                    F sum = dot[r][v][0];
                    for (int chain = 1; chain < CHAINS; chain++) sum += dot[r][v][chain];
                    if (CODE == E4M3FN) sum = sum * E4M3FN_UNIT;
                    const F total = set(left ? 0.0f : totals[r * groups + g]);
                    float *to = sums + r * PANEL + v * W;
                    F all = load(to) + scale * (sum - total * zero);
                    if (has_minimum) all -= minimum * total;
                    store(to, all);
                }
            }
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

FewRows few_rows(const Panels &w, int64_t rows) {
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

// W columns of k and of k + 1, in a panel of floats of 16 bits: at.
template <int32_t T> inline void load_two(const uint8_t *at, int v, F &first, F &second) {
    if constexpr (T == BF16) {  // a dword holds both, the lower k in its lower half
        const I pair = load_as<I>(at + v * W * 4);
        first = as_float(pair << 16), second = as_float(pair & int32_t(0xffff0000));
    } else {
        first = load_half(at + v * W * 2), second = load_half(at + (PANEL + v * W) * 2);
    }
}

// R rows, for which floats of 16 bits are widened in registers: sums [R][32] = the rows times one panel.
template <int R, int32_t T>
void rows_by_floats(const uint8_t *panel, int64_t k, const float *x, int64_t x_stride, float *sums) {
    constexpr int CHAINS = R * V >= 8 ? 1 : R * V >= 4 ? 2 : 4;  // of a sum, which would wait for itself
    constexpr int TWO_BYTES = 2 * PANEL * 2;
    for (int64_t first = 0; first < k; first += TILE_K) {  // no longer chains than a tile's
        const int64_t end = std::min(k, first + TILE_K);
        F dot[R][V][CHAINS] = {};
        auto add = [&](int64_t at, int chain, bool both) {
            F value[V][2];
            for (int v = 0; v < V; v++) load_two<T>(panel, v, value[v][0], value[v][1]);
            panel += TWO_BYTES;
            for (int r = 0; r < R; r++) {
                const float *row = x + r * x_stride + at;
                const F one = set(row[0]), other = set(both ? row[1] : 0.0f);
                for (int v = 0; v < V; v++) {
                    dot[r][v][chain % CHAINS] += value[v][0] * one;
                    dot[r][v][(chain + 1) % CHAINS] += value[v][1] * other;
                }
            }
        };
        int64_t at = first;
        for (; at + 4 <= end; at += 4) {
            ask_ahead(panel, 2 * TWO_BYTES);
            add(at, 0, true), add(at + 2, 2, true);
        }
        for (; at + 2 <= end; at += 2) add(at, 0, true);
        if (at < end) {
            if constexpr (T == BF16) {
                add(at, 0, false);  // what is padded is a number
            } else {
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < V; v++)
                        dot[r][v][0] += load_half(panel + v * W * 2) * set(x[r * x_stride + at]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) {
                F sum = dot[r][v][0];
                for (int chain = 1; chain < CHAINS; chain++) sum += dot[r][v][chain];
                float *to = sums + r * PANEL + v * W;
                store(to, load(to) + sum);
            }
    }
}

using FewFloats = void (*)(const uint8_t *, int64_t, const float *, int64_t, float *);

template <int32_t T, size_t... R> FewFloats floats_by_rows(int64_t rows, std::index_sequence<R...>) {
    constexpr FewFloats all[] = {rows_by_floats<int(R) + 1, T>...};
    return all[rows - 1];
}

// A piece [first, first + count) of a panel of floats as f32.
const float *float_tile(const Product &p, const uint8_t *panel, int64_t first, int64_t count, float *tile) {
    if (p.float_dtype == F32) return reinterpret_cast<const float *>(panel) + first * PANEL;
    if (p.float_dtype == F16) {
        for (int64_t i = 0; i < count * PANEL; i += W) store(tile + i, load_half(panel + (first * PANEL + i) * 2));
        return tile;
    }
    for (int64_t k = 0; k < count; k += 2)  // a dword holds k and k + 1, the lower k in its lower half
        for (int v = 0; v < V; v++) {
            const I pair = load_as<I>(panel + ((first + k) / 2 * PANEL + v * W) * 4);
            store(tile + k * PANEL + v * W, as_float(pair << 16));
            if (k + 1 < count) store(tile + (k + 1) * PANEL + v * W, as_float(pair & int32_t(0xffff0000)));
        }
    return tile;
}

// Sums of a row's groups. They depend on no panel, and broadcasts of what scalars need too would take the pipe of permutes.
void totals_of_groups(const float *x, int64_t k, int64_t group, float *totals) {
    for (int64_t first = 0; first < k; first += group) {
        F total = set(0.0f);
        for (int64_t i = 0; i < group; i += W) total = total + load(x + first + i);
        *totals++ = sum(total);
    }
}

// ---- few rows, as digits

using RowsByDigits = void (*)(const Panels &, const uint8_t *, const DigitRows &, float *);

// What multiplies all rows of x, once their digits are in `to`; null where they are to be multiplied as floats.
template <int DIGITS, int BITS, int SLAB, int ROWS = most_rows(DIGITS, BITS)>
RowsByDigits split_rows(const Product &p, const DigitRows &to) {
    if constexpr (ROWS > 0) {
        if (p.rows != ROWS) return split_rows<DIGITS, BITS, SLAB, ROWS - 1>(p, to);
        for (int r = 0; r < ROWS; r++) {
            const float *row = as_f32_row(p.x, r * p.x_stride, p.k, p.x_dtype, p.permutation, to.row);
            if (!split_row<ROWS, DIGITS, SLAB>(p.weight, row, r, to)) return nullptr;
            if (p.weight.has_minimum)
                totals_of_groups(row, p.weight.k, p.weight.group, to.totals + r * (p.weight.k / p.weight.group));
        }
        return rows_by_digits<ROWS, DIGITS, BITS, SLAB>;
    } else {
        return nullptr;
    }
}

template <int DIGITS> RowsByDigits split_by_form(const Product &p, unsigned char *own, size_t own_bytes, DigitRows &to) {
    if (p.rows > most_rows(DIGITS, 4) || size_t(DigitRows::bytes(p.rows, DIGITS, p.k)) > own_bytes) return nullptr;
    to = DigitRows::in(own, p.rows, DIGITS, p.k);
    RowsByDigits found = nullptr;
    auto split = [&](auto bits, auto slab) {
        found = split_rows<DIGITS, decltype(bits)::value, decltype(slab)::value>(p, to);
    };
    if (is_by_table(p.weight)) split(std::integral_constant<int, BY_TABLE>{}, std::integral_constant<int, 32>{});
    else if (p.weight.code == INTEGERS) by_form(p.weight, split);
    return found;
}

// ----

// All rows of x, f32 with x_stride, against one panel; sums [rows][32]. totals: of the groups of few rows, or null.
void panel_product(const Product &p, int64_t number, const float *x, int64_t x_stride, int64_t rows, const float *totals,
                   float *tile, float *sums) {
    std::memset(sums, 0, size_t(rows) * PANEL * 4);
    if (p.float_dtype >= 0) {
        const int64_t element = p.float_dtype == F32 ? 4 : 2, k_stored = p.float_dtype == BF16 ? (p.k + 1) / 2 * 2 : p.k;
        const uint8_t *panel = p.weight.data + number * k_stored * PANEL * element;
        if (rows <= MOST_IN_REGISTERS && element == 2) {
            constexpr auto counts = std::make_index_sequence<MOST_IN_REGISTERS>();
            const auto few = p.float_dtype == BF16 ? floats_by_rows<BF16>(rows, counts) : floats_by_rows<F16>(rows, counts);
            return few(panel, p.k, x, x_stride, sums);
        }
        for (int64_t first = 0; first < p.k; first += TILE_K) {
            const int64_t count = p.k - first < TILE_K ? p.k - first : TILE_K;
            const float *t = float_tile(p, panel, first, count, tile);
            for (int64_t r = 0; r < rows; r += ROWS)
                multiply_rows(int(rows - r < ROWS ? rows - r : ROWS), x + r * x_stride + first, x_stride, t, count,
                              sums + r * PANEL);
        }
        return;
    }
    const Panels &w = p.weight;
    const Widen widened = widen_of(w);
    const uint8_t *panel = w.data + number * w.panel_bytes();
    if (totals) return few_rows(w, rows)(w, panel, x, x_stride, totals, sums);
    // Whole groups at a time where they are small, pieces of one where they are large.
    const int64_t groups = w.group < TILE_K ? TILE_K / w.group : 1;
    const int64_t piece = w.group < TILE_K ? w.group : TILE_K / w.slab() * w.slab();
    for (int64_t first = 0; first < w.k;) {
        int64_t count = 0;
        for (int64_t g = 0; g < groups && first + count < w.k; g++) {
            const int64_t at = first + count, in_group = at % w.group, left = w.group - in_group;
            const int64_t part = left < piece ? left : piece;
            if (rows <= FEW) ask_ahead(w.group_at(panel, at / w.group) + in_group * PANEL * w.bits / 8,
                                       part == w.group ? w.group_bytes() : part * PANEL * w.bits / 8);
            widened(w, panel, at / w.group, in_group, part, tile + count * PANEL);
            count += part;
        }
        for (int64_t r = 0; r < rows; r += ROWS)
            multiply_rows(int(rows - r < ROWS ? rows - r : ROWS), x + r * x_stride + first, x_stride, tile, count,
                          sums + r * PANEL);
        first += count;
    }
}

// Sums of a panel, [rows][32], -> y from row `row` on.
void write_sums(const Product &p, int64_t number, int64_t row, int64_t rows, float *sums) {
    const int64_t column = number * PANEL;
    const int columns = int(p.n - column < PANEL ? p.n - column : PANEL);
    for (int64_t r = 0; r < rows; r++) {
        float *s = sums + r * PANEL;
        if (p.bias)
            for (int j = 0; j < columns; j++) s[j] += p.bias[column + j];
        const int64_t y = (row + r) * p.y_stride + column;
        int j = 0;
        for (; j + W <= columns; j += W) store_any(p.y, y + j, p.y_dtype, load(s + j));
        for (; j < columns; j++) store_one(p.y, y + j, p.y_dtype, s[j]);
    }
}

// Whether the product was done so. Every thread splits the rows for itself: sooner done than another's are waited for.
bool by_digits(const Product &p, Worker &worker, float *sums, unsigned char *own, size_t own_bytes) {
    if (p.float_dtype >= 0) return false;
    DigitRows rows;
    RowsByDigits multiply = p.x_dtype == F32 ? nullptr : split_by_form<3>(p, own, own_bytes, rows);
    if (!multiply) multiply = split_by_form<4>(p, own, own_bytes, rows);
    if (!multiply) return false;
    int64_t begin, end;
    worker.share((p.n + PANEL - 1) / PANEL, begin, end);
    for (int64_t number = begin; number < end; number++) {
        multiply(p.weight, p.weight.data + number * p.weight.panel_bytes(), rows, sums);
        write_sums(p, number, 0, p.rows, sums);
    }
    return true;
}

// Rows of x as f32, in the order of a weight's codes, with zeros behind them where columns are padded.
struct WideRows {
    const float *x;
    int64_t stride;
};

// Straight from the caller where x is that already; else the threads make them together and wait for each other.
WideRows widen_rows(const MatmulA16 &c, int64_t rows, Worker &worker) {
    bool in_place = c.x_dtype == F32;
    each_weight(c, rows, [&](int64_t expert, int64_t, int64_t) {
        const Product p(c, expert, 0, 0);
        in_place = in_place && !p.permutation && p.padded() == c.k;
    });
    if (in_place) return {static_cast<const float *>(c.x), c.x_stride};
    const int64_t stride = whole_blocks(c.k);
    int64_t begin, end;
    worker.share(rows, begin, end);
    each_weight(c, rows, [&](int64_t expert, int64_t first, int64_t count) {
        for (int64_t r = std::max(begin, first); r < std::min(end, first + count); r++) {
            float *to = reinterpret_cast<float *>(worker.shared) + r * stride;
            const float *row = as_f32_row(c.x, r * c.x_stride, c.k, c.x_dtype, c.weights[expert].permutation, to);
            if (row != to) std::memcpy(to, row, size_t(c.k) * 4);
        }
    });
    worker.barrier();
    return {reinterpret_cast<float *>(worker.shared), stride};
}

}  // namespace

void matmul_a16(const Command *command, Worker &worker) {
    const MatmulA16 &c = *static_cast<const MatmulA16 *>(command);
    float *tile = reinterpret_cast<float *>(worker.own), *sums = tile + TILE_K * PANEL;
    unsigned char *rest = reinterpret_cast<unsigned char *>(sums + BLOCK_ROWS * PANEL);
    const size_t rest_bytes = OWN_BYTES - size_t(rest - worker.own);
    // Offsets are read here for the first time, unless `checked="deep"`: wrong ones may give wrong rows, no more.
    const int64_t rows = c.offsets ? std::clamp(c.offsets[c.experts], int64_t(0), c.rows) : c.rows;
    // Of one weight before rows are widened, which threads wait for.
    if (!c.offsets && by_digits(Product(c, 0, 0, rows), worker, sums, rest, rest_bytes)) return;
    const WideRows wide = widen_rows(c, rows, worker);
    // Panels of many rows, one weight's after the other's: whoever is free takes the next.
    int64_t taken = -1, before = 0;
    auto take = [&] { return worker.next(0, std::numeric_limits<int64_t>::max()); };
    each_weight(c, rows, [&](int64_t expert, int64_t first, int64_t count) {
        const Product p(c, expert, first, count);
        if (c.offsets && by_digits(p, worker, sums, rest, rest_bytes)) return;
        const float *x = wide.x + first * wide.stride;
        // In place of the tile, which few rows do without.
        const int64_t groups = p.float_dtype < 0 ? p.padded() / p.weight.group : 0, panels = p.panels();
        const bool few = groups && count <= MOST_IN_REGISTERS && count * groups <= TILE_K * PANEL;
        for (int64_t r = 0; few && r < count; r++)
            totals_of_groups(x + r * wide.stride, p.padded(), p.weight.group, tile + r * groups);
        auto panel_of_rows = [&](int64_t number, int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
                const int64_t some = std::min(end - row, BLOCK_ROWS);
                panel_product(p, number, x + row * wide.stride, wide.stride, some, few ? tile : nullptr, tile, sums);
                write_sums(p, number, row, some, sums);
            }
        };
        int64_t begin, end;
        if (count >= OWN_ROWS * worker.count) {
            worker.share(count, begin, end);
            for (int64_t number = 0; number < panels; number++) panel_of_rows(number, begin, end);
        } else if (count <= FEW) {
            worker.share(panels, begin, end);
            for (int64_t number = begin; number < end; number++) panel_of_rows(number, 0, count);
        } else {
            if (taken < 0) taken = take();
            for (; taken < before + panels; taken = take()) panel_of_rows(taken - before, 0, count);
            before += panels;
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
