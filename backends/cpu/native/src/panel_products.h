// Slabs of packed codes times signed bytes: what products of int8 rows and of rows as digits are made of.
#pragma once
#include "panel_codes.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int VECTORS = PANEL / W;
constexpr int PART = VECTORS < 2 ? 1 : 2;  // vectors of columns in registers together
constexpr int PARTS = VECTORS / PART;
// The same for int8 products of so many rows. One row is read from memory once, and a second pass over its columns would have
// no memory to wait for.
constexpr int part_of(int rows) { return W == 8 && rows == 1 ? VECTORS : PART; }

inline I broadcast(const unsigned char *four_codes) {
    int32_t v;
    std::memcpy(&v, four_codes, 4);
    return set(v);
}
template <class T> inline T element(const unsigned char *p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Sums of some steps. On AVX2 alone in 16 bits, which hold 8 steps of codes below 16, 4 of codes below 32 and 2 of codes below 64:
// at most 2 * 2 * 63 * 128. Longer codes meet the two digits of rows that were split (split_row_codes): 4 steps of the lower,
// 8 of the upper one, at most 8 * 2 * 255 * 8.
#if OPSOCKET_AVX2 && !OPSOCKET_AVX_VNNI
#define OPSOCKET_SHORT_SUMS 1
constexpr bool HAS_SHORT_SUMS = true;
inline I steps_begun(I) { return I{}; }
// begins: there is nothing to add them to yet.
inline I add_products(I sum, I w, I a, bool begins) {
    __m256i all = _mm256_maddubs_epi16((__m256i)w, (__m256i)a);
    if (!begins) all = _mm256_add_epi16((__m256i)sum, all);
    asm("" : "+x"(all));  // or the compiler makes all products of a slab first, and adds them up from memory
    return (I)all;
}
template <int FACTOR> inline I steps_ended(I acc, I sum) {
    return acc + (I)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(FACTOR));
}
constexpr int steps_of(int bits) { return bits == 5 ? 4 : bits == 6 ? 2 : 8; }
#else
constexpr bool HAS_SHORT_SUMS = false;
inline I steps_begun(I acc) { return acc; }
inline I add_products(I sum, I w, I a, bool) { return dot_u8s8(sum, w, a); }
template <int FACTOR> inline I steps_ended(I, I sum) { return sum; }
constexpr int steps_of(int) { return 8; }
#endif

// What stands at p in the first of some rows, in row r: from few registers, where a pointer for each row would take six.
inline const unsigned char *of_row(const unsigned char *p, int r, int64_t row_bytes) {
    return r < 3 ? p + r * row_bytes : p + 3 * row_bytes + (r - 3) * row_bytes;
}

#if OPSOCKET_SHORT_SUMS
// Codes of a row of int8 as two digits of 4 bits: the lower, unsigned, in their place, the upper, signed, `to_upper` bytes on.
inline void split_row_codes(unsigned char *row, int64_t count, int64_t to_upper) {
    const I low = set(int32_t(0x0f0f0f0f)), sign = set(int32_t(0x08080808));
    for (int64_t i = 0; i < count; i += W * 4) {
        const I codes = load_as<I>(row + i), upper = ((codes >> 4) & low) ^ sign, lower = codes & low;
        const __m256i digits = _mm256_sub_epi8((__m256i)upper, (__m256i)sign);
        std::memcpy(row + i, &lower, sizeof lower), std::memcpy(row + to_upper + i, &digits, sizeof digits);
    }
}

// add_slab for codes of more than 6 bits (BY_TABLE among them) and rows whose codes were split.
template <int MR, int BITS, int SLAB, int PART>
inline __attribute__((always_inline)) void add_long_codes(I (&acc)[MR][PART], const unsigned char *w, const unsigned char *x,
                                                          int64_t row_bytes, int64_t to_upper, [[maybe_unused]] I table) {
    constexpr int FIELDS = 8 / stored_bits(BITS), STEPS = SLAB / 4 / FIELDS, ALL = SLAB / 4;
    constexpr int PASSES = MR * PART > 4 ? 2 : 1, DIGITS = 2 / PASSES;  // registers hold the sums of so many together
    const unsigned char *row[MR];
    for (int r = 0; r < MR; r++) row[r] = of_row(x, r, row_bytes);
#pragma GCC unroll 2
    for (int pass = 0; pass < PASSES; pass++) {
        I sum[DIGITS][MR][PART];
#pragma GCC unroll 8
        for (int step = 0; step < ALL; step++) {
            const int s = step / FIELDS, field = step % FIELDS, at = field * STEPS + s;
            I codes[PART];
            for (int v = 0; v < PART; v++) {
                codes[v] = load_as<I>(w + s * PANEL * 4 + v * W * 4);
                if constexpr (BITS == BY_TABLE) codes[v] = look_up(table, (codes[v] >> (4 * field)) & 0x0f0f0f0f);
            }
#pragma GCC unroll 4
            for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
                for (int d = 0; d < DIGITS; d++) {
                    const int digit = pass + d, held = digit ? 8 : 4;
                    const I a = broadcast(row[r] + digit * to_upper + at * 4);
                    for (int v = 0; v < PART; v++)
                        sum[d][r][v] = step % held ? add_products(sum[d][r][v], codes[v], a, false)
                                                   : add_products(I{}, codes[v], a, true);
                }
#pragma GCC unroll 2
            for (int d = 0; d < DIGITS; d++) {
                const int digit = pass + d, held = digit ? 8 : 4;
                if (step % held != held - 1 && step != ALL - 1) continue;
                for (int r = 0; r < MR; r++)
                    for (int v = 0; v < PART; v++)
                        acc[r][v] = digit ? steps_ended<16>(acc[r][v], sum[d][r][v]) : steps_ended<1>(acc[r][v], sum[d][r][v]);
            }
        }
    }
}
#endif

// acc += codes of one slab of a panel, from `part` vectors on, times the rows' codes from x on, of a step STEP_BYTES
// behind those of the step before. TILE: codes are bytes that hold BITS or fewer. to_upper: where rows are split.
template <int MR, int BITS, int SLAB, int CHAINS, bool TILE, int STEP_BYTES = 4, int PART>
inline __attribute__((always_inline)) void add_slab(I (&acc)[CHAINS][MR][PART], const unsigned char *w,
                                                    const unsigned char *x, int64_t row_bytes,
                                                    [[maybe_unused]] int64_t to_upper, [[maybe_unused]] I table) {
    constexpr int LOW = TILE ? 8 : low_bits(BITS), FIELDS = 8 / LOW, STEPS = SLAB / 4 / FIELDS, HELD = steps_of(BITS);
#if OPSOCKET_SHORT_SUMS
    if constexpr (BITS > 6) return add_long_codes<MR, BITS, SLAB>(acc[0], w, x, row_bytes, to_upper, table);
#endif
    const unsigned char *row[MR];
    for (int r = 0; r < MR; r++) row[r] = of_row(x, r, row_bytes);
    I sum[CHAINS][MR][PART];
    auto begin = [&] {
        for (int chain = 0; chain < CHAINS; chain++)
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) sum[chain][r][v] = steps_begun(acc[chain][r][v]);
    };
    auto end = [&] {
        for (int chain = 0; chain < CHAINS; chain++)
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) acc[chain][r][v] = steps_ended<1>(acc[chain][r][v], sum[chain][r][v]);
    };
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; s++) {
        I packed[PART];
        for (int v = 0; v < PART; v++) packed[v] = load_as<I>(w + s * PANEL * 4 + v * W * 4);
#pragma GCC unroll 4
        for (int field = 0; field < FIELDS; field++) {
            const bool begins = (s * FIELDS + field) % HELD == 0;
            if (begins) begin();
            I codes[PART];
            for (int v = 0; v < PART; v++) {
                codes[v] = LOW == 8 ? packed[v] : (packed[v] >> (LOW * field)) & (LOW == 4 ? 0x0f0f0f0f : 0x03030303);
                if constexpr (!TILE && BITS == BY_TABLE) codes[v] = look_up(table, codes[v]);
                else if constexpr (!TILE && BITS != LOW) codes[v] = codes[v] | upper_bits<BITS, SLAB>(w, field * STEPS + s, v);
            }
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) {
                I a = broadcast(row[r] + STEP_BYTES * (field * STEPS + s));
                for (int v = 0; v < PART; v++) {
                    I &to = sum[(field * STEPS + s) % CHAINS][r][v];
                    to = add_products(to, codes[v], a, !TILE && begins);
                }
            }
            if ((s * FIELDS + field) % HELD == HELD - 1 || s * FIELDS + field == STEPS * FIELDS - 1) end();
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
