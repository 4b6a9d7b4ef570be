// Many rows of floats by tiles of AMX: rows as bf16 parts (bf16_parts.h), codes less their zero as bf16, which they are exactly.
// Products of parts are summed in f32 for a unit, the k that share a scale but no more than a step, then scaled and added up.
#pragma once
#include "bf16_parts.h"
#include "matmul_a16_codes.h"
#if OPSOCKET_AMX

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int64_t LONG_TILES = 4;      // of a unit, from which on its sums may be in memory
constexpr int64_t STEP_K = 256;        // of weights that rows meet together: 16 KB of a level 1 cache's 48
constexpr int64_t SHORT_STEP_K = 128;  // of short units: rows meet one half of the panel after the other, and should still be there
constexpr int64_t UNIT_K = STEP_K;     // no more in one sum: its roundings would add up

// How K is cut. step: whole units; of floats it is one.
struct Steps {
    int64_t k, tile_k, unit, units, step;  // units: of all
    bool minimums;

    static Steps of_floats(int64_t k, int64_t parts) {
        const int64_t tiles = (k + 31) / 32, most = STEP_K / 32 / parts, steps = (tiles + most - 1) / most;
        return {tiles * 32, 32, 0, steps, (tiles + steps - 1) / steps * 32, false};
    }
    explicit Steps(const Panels &w) : k(w.k), tile_k(w.group % 32 ? 16 : 32), unit(w.group), minimums(w.has_minimum) {
        if (unit > UNIT_K)
            for (unit = UNIT_K; w.group % unit; unit -= tile_k) {}
        units = k / unit;
        const int64_t most = (unit < LONG_TILES * tile_k ? SHORT_STEP_K : STEP_K) / unit, steps = (units + most - 1) / most;
        step = (units + steps - 1) / steps * unit;
    }

   private:
    Steps(int64_t k, int64_t tile_k, int64_t unit, int64_t units, int64_t step, bool minimums)
        : k(k), tile_k(tile_k), unit(unit), units(units), step(step), minimums(minimums) {}
};

// A step of a panel: pairs of k of bf16, [k / 2][32][2], and of codes each unit's scales and minimums.
struct Unpacked {
    alignas(64) unsigned char pairs[STEP_K * PANEL * 2];
    alignas(64) float scales[STEP_K / 16 * 2 * PANEL];
};

inline I pair_of(F first, F second) { return (I)((U)first >> 16) | (as_int(second) & int32_t(0xffff0000)); }

// k = first .. first + count - 1 of group g, less their zero.
template <int CODE, int BITS, int SLAB>
void unpack_codes(const Panels &w, const uint8_t *panel, int64_t g, int64_t first, int64_t count, unsigned char *to) {
    const uint8_t *codes = w.group_at(panel, g) + first / SLAB * w.slab_bytes();
    const I mask = set(int32_t((1 << BITS) - 1)), offset = set(int32_t(w.zero_offset));
    const Numbers numbers(w, w.zero_offset);
    for (; count > 0; count -= SLAB, codes += SLAB * PANEL * BITS / 8)
#pragma GCC unroll 8
        for (int step = 0; step < SLAB / 4; step++, to += 2 * PANEL * 4)
            for (int v = 0; v < VECTORS; v++) {
                const I four = codes_of_step<BITS, SLAB>(codes, step, v);
                F values[4];
                if constexpr (CODE == E4M3FN) four_e4m3fn(four, values);
                for (int b = 0; b < 4; b++) {
                    if constexpr (CODE == E4M3FN) values[b] = values[b] * E4M3FN_UNIT;
                    else values[b] = number<CODE, BITS>(four >> (8 * b), mask, offset, numbers);
                }
                for (int two = 0; two < 2; two++) {
                    const I pair = pair_of(values[2 * two], values[2 * two + 1]);
                    std::memcpy(to + (two * PANEL + v * W) * 4, &pair, sizeof pair);
                }
            }
}

// Where the table has but 16 entries, by its bytes.
template <int BITS, int SLAB>
void unpack_nibbles(const Panels &w, const uint8_t *panel, int64_t g, int64_t first, int64_t count, unsigned char *to) {
    const uint8_t *codes = w.group_at(panel, g) + first / SLAB * w.slab_bytes();
    alignas(16) uint8_t lower[16], upper[16];
    for (int i = 0; i < 16; i++) {
        const int number = w.code == IQ4 ? IQ4_INTEGERS[i] : w.code == E2M1 ? TWICE_E2M1[i] : i - w.zero_offset;
        const uint16_t bits = float_to_bf16(float(number));
        lower[i] = uint8_t(bits), upper[i] = uint8_t(bits >> 8);
    }
    // Of each four dwords the first two bytes, then the others: as interleaving takes them.
    alignas(16) static constexpr uint8_t TWO_AND_TWO[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
    const I low = repeated(lower), high = repeated(upper), order = repeated(TWO_AND_TWO);
    for (; count > 0; count -= SLAB, codes += SLAB * PANEL * BITS / 8)
#pragma GCC unroll 8
        for (int step = 0; step < SLAB / 4; step++, to += 2 * PANEL * 4)
            for (int v = 0; v < VECTORS; v++) {
                const I four = look_up(codes_of_step<BITS, SLAB>(codes, step, v), order);
                const __m512i l = (__m512i)look_up(low, four), h = (__m512i)look_up(high, four);
                _mm512_storeu_si512(to + v * W * 4, _mm512_unpacklo_epi8(l, h));
                _mm512_storeu_si512(to + (PANEL + v * W) * 4, _mm512_unpackhi_epi8(l, h));
            }
}

// The same as numbers, times their scale and less their minimum, rounded to bf16.
template <int CODE, int BITS, int SLAB>
void round_codes(const Panels &w, const uint8_t *panel, int64_t g, int64_t first, int64_t count, unsigned char *to) {
    const uint8_t *codes = w.group_at(panel, g) + first / SLAB * w.slab_bytes();
    const Scales scales = scales_of(w, panel, g, 0), minimums = scales_of(w, panel, g, 1);
    const I mask = set(int32_t((1 << BITS) - 1)), offset = set(int32_t(w.zero_offset));
    const Numbers numbers(w, w.zero_offset);
    F scale[VECTORS], minimum[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        scale[v] = CODE == E4M3FN ? scales.vector(v * W) * E4M3FN_UNIT : scales.vector(v * W);
        minimum[v] = w.has_minimum ? minimums.vector(v * W) : set(0.0f);
    }
    alignas(64) uint16_t places[2 * W];
    for (int i = 0; i < 2 * W; i++) places[i] = uint16_t(i / 2 + i % 2 * W);
    const __m512i beside = _mm512_load_si512(places);
    for (; count > 0; count -= SLAB, codes += SLAB * PANEL * BITS / 8)
#pragma GCC unroll 8
        for (int step = 0; step < SLAB / 4; step++, to += 2 * PANEL * 4)
            for (int v = 0; v < VECTORS; v++) {
                const I four = codes_of_step<BITS, SLAB>(codes, step, v);
                F values[4];
                if constexpr (CODE == E4M3FN) four_e4m3fn(four, values);
                for (int b = 0; b < 4; b++) {
                    if constexpr (CODE != E4M3FN) values[b] = number<CODE, BITS>(four >> (8 * b), mask, offset, numbers);
                    values[b] = values[b] * scale[v] - minimum[v];
                }
                for (int two = 0; two < 2; two++) {
                    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)values[2 * two + 1], (__m512)values[2 * two]);
                    _mm512_store_si512(to + (two * PANEL + v * W) * 4, _mm512_permutexvar_epi16(beside, halves));
                }
            }
}

using UnpackCodes = void (*)(const Panels &, const uint8_t *, int64_t, int64_t, int64_t, unsigned char *);

// rounded: as round_codes has them.
inline UnpackCodes unpacking(const Panels &w, bool rounded) {
    UnpackCodes found = nullptr;
    auto take = [&](auto code, auto bits, auto slab) {
        constexpr int CODE = decltype(code)::value, BITS = decltype(bits)::value, SLAB = decltype(slab)::value;
        found = rounded ? round_codes<CODE, BITS, SLAB> : unpack_codes<CODE, BITS, SLAB>;
    };
    constexpr std::integral_constant<int, 4> four{};
    constexpr std::integral_constant<int, 8> eight{};
    constexpr std::integral_constant<int, 16> sixteen{};
    constexpr std::integral_constant<int, 32> thirty_two{};
    if (w.code == E4M3FN && w.slab() == 32) take(std::integral_constant<int, E4M3FN>{}, eight, thirty_two);
    else if (w.code == E4M3FN) take(std::integral_constant<int, E4M3FN>{}, eight, sixteen);
    else if (w.code == E2M1) take(std::integral_constant<int, E2M1>{}, four, thirty_two);
    else if (w.code == IQ4) take(std::integral_constant<int, IQ4>{}, four, thirty_two);
    else by_form(w, [&](auto bits, auto slab) { take(std::integral_constant<int, INTEGERS>{}, bits, slab); });
    return found;
}

// k = first to first + count - 1 of a panel, rounded, and zeros where it has no more.
inline void round_step(const Panels &w, UnpackCodes unpack, const uint8_t *panel, int64_t first, int64_t count, unsigned char *to) {
    const int64_t end = std::min(first + count, w.k);
    std::memset(to + (end - first) * PANEL * 2, 0, size_t(first + count - end) * PANEL * 2);
    for (int64_t k = first; k < end;) {
        const int64_t in_group = k % w.group, some = std::min(w.group - in_group, end - k);
        unpack(w, panel, k / w.group, in_group, some, to);
        k += some, to += some * PANEL * 2;
    }
}

// Units from k = first on, `count` k.
inline void unpack_step(const Panels &w, const Steps &s, UnpackCodes unpack, const uint8_t *panel, int64_t first, int64_t count, Unpacked &to) {
    float *scales = to.scales;
    unsigned char *pairs = to.pairs;
    for (int64_t k = first; k < first + count; k += s.unit, pairs += s.unit * PANEL * 2) {
        const int64_t g = k / w.group;
        unpack(w, panel, g, k % w.group, s.unit, pairs);
        for (int kind = 0; kind < w.kinds(); kind++, scales += PANEL) {
            const Scales from = scales_of(w, panel, g, kind);
            for (int v = 0; v < VECTORS; v++) store(scales + v * W, from.vector(v * W));
        }
    }
}

// Floats of 16 bits as two parts, one [k / 2][32][2] behind the other's `length`; zeros from `count` on.
inline void split_halves(const unsigned char *panel, int64_t count, int64_t length, Unpacked &to) {
    unsigned char *upper = to.pairs, *lower = upper + length * PANEL * 2;
    for (int64_t k = 0; k < length; k += 2)
        for (int v = 0; v < VECTORS; v++, upper += W * 4, lower += W * 4) {
            F number[2], rest[2];
            for (int i = 0; i < 2; i++) {
                number[i] = k + i < count ? load_half(panel + ((k + i) * PANEL + v * W) * 2) : set(0.0f);
                const __mmask16 finite = _mm512_cmplt_epi32_mask((__m512i)as_int(abs(number[i])), _mm512_set1_epi32(0x7f800000));
                const F first = as_float(as_int(number[i]) & int32_t(0xffff0000));
                rest[i] = (F)_mm512_maskz_sub_ps(finite, (__m512)number[i], (__m512)first);
            }
            const I first = pair_of(number[0], number[1]), second = pair_of(rest[0], rest[1]);
            std::memcpy(upper, &first, sizeof first), std::memcpy(lower, &second, sizeof second);
        }
}

// Memory to ask for while rows meet a step: some lines with each k of a tile, as more at once would be waited for.
struct Ask {
    const unsigned char *next, *end;
    int64_t lines;

    void some() {
        for (int64_t i = lines; i && next < end; i--, next += 64) ask_for_line(next);
    }
};

// What some k of a panel are for the tiles.
struct Factor {
    const unsigned char *pairs;
    const float *scales;  // null: 1
    int64_t units, tiles;  // tiles: of a unit
    bool parts;            // units are parts of the same k
};

// What 16 rows are for them: their first tile, totals of units [unit][16], and sums [16][32].
struct Block {
    const unsigned char *x;
    const float *totals;
    float *sums;
};

// Tiles: 0 to 3 sums, 4 and 5 rows of x, 6 and 7 weights.
inline void use_tiles(int64_t tile_k) {
    TileShapes s;
    for (int t : {0, 1, 2, 3}) s.set(t, TILE_ROWS, 64);
    for (int t : {4, 5}) s.set(t, TILE_ROWS, tile_k * 2);
    for (int t : {6, 7}) s.set(t, tile_k / 2, 64);
    s.use();
}

// Short units: 16 rows by half a panel, whose sums stay in registers.
template <int P, bool MINIMUMS> void add_half(const Factor &f, const Block &block, int half, int64_t tile_k, bool begins, Ask &ask) {
    constexpr int KINDS = MINIMUMS ? 2 : 1;
    const int64_t x_stride = tile_k * 2, tile_bytes = TILE_ROWS * x_stride, w_bytes = tile_k * PANEL * 2, units = f.units;
    alignas(64) float slots[4][TILE_ROWS][W];
    float *sums = block.sums + half * W;
    F sum[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) sum[r] = begins ? set(0.0f) : load(sums + r * PANEL);
    const unsigned char *x = block.x, *w = f.pairs + half * W * 4;
    const float *scales = f.scales + half * W, *totals = block.totals;
    int64_t issued = 0;
    auto issue = [&](auto which) __attribute__((always_inline)) {
        constexpr int S = decltype(which)::value;
        zero_tile<S>();
        for (int64_t t = f.tiles; t; t--, w += w_bytes) {
            ask.some();
            load_tile<6 + S>(w, PANEL * 4);
            for (int p = 0; p < P; p++, x += tile_bytes) load_tile<4 + S>(x, x_stride), add_bf16<S, 4 + S, 6 + S>();
        }
    };
    // Two sums before they are stored: a load whose address is that of a store before it but for whole pages waits for it.
    auto issue_two = [&]() __attribute__((always_inline)) {
        const bool two = units - issued > 1;
        issue(std::integral_constant<int, 0>{});
        if (two) issue(std::integral_constant<int, 1>{});
        store_tile<0>(slots[issued & 3], 64);
        if (two) store_tile<1>(slots[(issued + 1) & 3], 64);
        issued += 2;
    };
    auto take = [&](int64_t number) __attribute__((always_inline)) {
        const float(*slot)[W] = slots[number & 3];
        const F scale = load(scales);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) sum[r] += load(slot[r]) * scale;
        if (MINIMUMS) {
            const F minimum = load(scales + PANEL);
#pragma GCC unroll 16
            for (int r = 0; r < TILE_ROWS; r++) sum[r] -= minimum * totals[r];
            totals += TILE_ROWS;
        }
        scales += KINDS * PANEL;
    };
    issue_two();
    for (int64_t taken = 0; taken < units;) {
        if (issued < units) issue_two();
        take(taken++);
        if (taken < units) take(taken++);
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) store(sums + r * PANEL, sum[r]);
}

// Longer ones: 16 rows by a panel, whose sums are in memory meanwhile. Those of one unit or block are stored while the next
// ones' products have begun in another pair of tiles.
template <int P, bool MINIMUMS> void add_panel(const Factor &f, const Block *blocks, int64_t count, int64_t tile_k, bool begins, Ask &ask) {
    constexpr int KINDS = MINIMUMS ? 2 : 1;
    const int64_t x_stride = tile_k * 2, tile_bytes = TILE_ROWS * x_stride, w_bytes = tile_k * PANEL * 2;
    alignas(64) float slots[2][2][TILE_ROWS][W];
    const unsigned char *x = nullptr, *w = nullptr;
    auto issue = [&](auto pair, bool first) __attribute__((always_inline)) {
        constexpr int S = decltype(pair)::value * 2;
        if (first) zero_tile<S>(), zero_tile<S + 1>();
        ask.some();
        load_tile<6>(w, PANEL * 4), load_tile<7>(w + W * 4, PANEL * 4), w += w_bytes;
        for (int p = 0; p < P; p++, x += tile_bytes) {
            load_tile<4>(x, x_stride);
            add_bf16<S, 4, 6>(), add_bf16<S + 1, 4, 7>();
        }
    };
    auto put = [&](auto pair) __attribute__((always_inline)) {
        constexpr int S = decltype(pair)::value * 2;
        store_tile<S>(slots[S / 2][0], 64), store_tile<S + 1>(slots[S / 2][1], 64);
    };
    auto take = [&](const Block &block, int64_t unit, const float(*slot)[TILE_ROWS][W]) __attribute__((always_inline)) {
        for (int half = 0; half < 2; half++) {
            const F scale = f.scales ? load(f.scales + unit * KINDS * PANEL + half * W) : set(1.0f);
            [[maybe_unused]] const F minimum = MINIMUMS ? load(f.scales + (unit * 2 + 1) * PANEL + half * W) : F{};
#pragma GCC unroll 4
            for (int r = 0; r < TILE_ROWS; r++) {
                float *to = block.sums + r * PANEL + half * W;
                F sum = begins && unit == 0 ? set(0.0f) : load(to), product = load(slot[half][r]);
                // Infinity times the nothing that is left of a weight would be no number; the first part has what f32 makes of it.
                if (f.parts && unit) product = (F)_mm512_maskz_mov_ps(true_lanes(product == product), (__m512)product);
                sum += product * scale;
                if (MINIMUMS) sum -= minimum * block.totals[unit * TILE_ROWS + r];
                store(to, sum);
            }
        }
    };
    const Block *block = blocks, *before = nullptr;
    int64_t unit = 0, unit_before = 0;
    auto step = [&](auto pair) __attribute__((always_inline)) {
        constexpr std::integral_constant<int, 1 - decltype(pair)::value> other{};
        if (unit == 0 || f.parts) x = block->x;
        if (unit == 0) w = f.pairs;
        issue(pair, true);
        if (before) put(other);
        for (int64_t t = f.tiles; t > 1; t--) issue(pair, false);
        if (before) take(*before, unit_before, slots[other.value]);
        before = block, unit_before = unit;
        if (++unit == f.units) unit = 0, block++;
    };
    int64_t left = count * f.units;
    for (; left > 1; left -= 2) step(std::integral_constant<int, 0>{}), step(std::integral_constant<int, 1>{});
    if (left) {
        step(std::integral_constant<int, 0>{});
        put(std::integral_constant<int, 0>{}), take(*before, unit_before, slots[0]);
    } else {
        put(std::integral_constant<int, 1>{}), take(*before, unit_before, slots[1]);
    }
}

template <int P, bool MINIMUMS> void add_products(const Factor &f, const Block *blocks, int64_t count, int64_t tile_k, bool begins, Ask &ask) {
    if (!f.scales || f.tiles >= LONG_TILES) return add_panel<P, MINIMUMS>(f, blocks, count, tile_k, begins, ask);
    for (; count; count--, blocks++)
        for (int half = 0; half < 2; half++) add_half<P, MINIMUMS>(f, *blocks, half, tile_k, begins, ask);
}

using AddProducts = void (*)(const Factor &, const Block *, int64_t, int64_t, bool, Ask &);

inline AddProducts adding(int64_t parts, bool minimums) {
    constexpr AddProducts all[][2] = {{add_products<1, false>, add_products<1, true>},
                                      {add_products<2, false>, add_products<2, true>},
                                      {add_products<3, false>, add_products<3, true>}};
    return all[parts - 1][minimums];
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
#endif
