// Many rows and codes of 8 bits where products of bytes are summed in 16 bits, which hold no two of these (AVX2 without
// VNNI): a tile's codes and the rows' as numbers of 16 bits, whose products and sums are exact in 32. Six rows x 16
// columns at a time, whose sums and what they are made of take all 16 registers.
#pragma once
#include "matmul_a8.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int MOST_OF_WIDE = 6;  // rows

#if OPSOCKET_SHORT_SUMS
// A row's codes as numbers of 16 bits, in their place.
inline void widen_row(const Cuts &c, unsigned char *row) {
    for (int64_t i = whole_blocks(c.k) - 16; i >= 0; i -= 16)
        _mm256_storeu_si256((__m256i *)(row + i * 2), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + i))));
}

// A slab of codes, less `zero` each, as numbers of 16 bits: [k / 2][32][2].
template <int BITS, int SLAB>
inline void unpack_wide(const unsigned char *w, unsigned char *to, [[maybe_unused]] I table, int32_t zero) {
    // The first two and the last two bytes of each dword, with a zero above each.
    const __m256i first = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1,
                                           0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    const __m256i last = _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1,
                                          2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
    const __m256i offset = _mm256_set1_epi16(int16_t(zero));
#pragma GCC unroll 8
    for (int t = 0; t < SLAB / 4; t++)
        for (int v = 0; v < VECTORS; v++) {
            I codes = codes_of_step<stored_bits(BITS), SLAB>(w, t, v);
            if constexpr (BITS == BY_TABLE) codes = look_up(table, codes);
            unsigned char *at = to + t * PANEL * 8 + v * W * 4;
            _mm256_storeu_si256((__m256i *)at, _mm256_sub_epi16(_mm256_shuffle_epi8((__m256i)codes, first), offset));
            _mm256_storeu_si256((__m256i *)(at + PANEL * 4),
                                _mm256_sub_epi16(_mm256_shuffle_epi8((__m256i)codes, last), offset));
        }
}

// acc += 16 columns of a tile times the rows' from x on.
template <int MR>
inline __attribute__((always_inline)) void add_wide(I (&acc)[MR][PART], const unsigned char *w, const unsigned char *x,
                                                    int64_t row_bytes) {
    const unsigned char *row[MR];
    for (int r = 0; r < MR; r++) row[r] = of_row(x, r, row_bytes);
#pragma GCC unroll 8
    for (int s = 0; s < 8; s++) {
        I codes[PART];
        for (int v = 0; v < PART; v++) codes[v] = load_as<I>(w + s * PANEL * 4 + v * W * 4);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) {
            const I two = broadcast(row[r] + s * 4);
            for (int v = 0; v < PART; v++) {
                acc[r][v] += (I)_mm256_madd_epi16((__m256i)codes[v], (__m256i)two);
                asm("" : "+x"(acc[r][v]));  // in this order: the compiler's own takes more registers
            }
        }
    }
}

// `count` times MR rows times some units of a tile.
template <int MR, int SUMS>
void rows_by_wide(const Cuts &c, const Units &units, const unsigned char *rows, int64_t count, Fetch &fetch, Sink &to) {
    constexpr bool minimums = SUMS & SUM_MINIMUMS, x_scales = SUMS & SUM_X_SCALES;
    const int64_t unit_pieces = x_scales ? c.unit / c.piece : 1, turns = c.unit / unit_pieces / 16;
    const int64_t row_bytes = c.row_bytes, tail_bytes = PANEL * (minimums ? 8 : 4);
    for (; count; count--, rows += MR * row_bytes, to.pass(MR), fetch.end()) {
        fetch.begin();
#pragma GCC unroll 1
        for (int part = 0; part < PARTS; part++) {
            F f[MR][PART];
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++)
                    f[r][v] = units.column ? load(to.sums + r * PANEL + (part * PART + v) * W) : set(0.0f);
            F(*waiting)[PART] = f;
            asm("" : "+r"(waiting) : : "memory");  // sums of f32 wait in memory: registers are for those of integers
            const unsigned char *w = units.codes + part * PART * W * 4, *x = rows + units.column * 2;
            const unsigned char *weight = rows + units.weight, *own = rows + units.scale;
            for (int64_t u = units.count; u; u--, w += tail_bytes) {
                const unsigned char *scale = w + c.unit * PANEL * 2;
                if (minimums) {
                    for (int r = 0; r < MR; r++) {
                        const F factor = set(element<float>(of_row(weight, r, row_bytes)));
                        for (int v = 0; v < PART; v++) waiting[r][v] -= load_as<F>(scale + PANEL * 4 + v * W * 4) * factor;
                    }
                    weight += 4;
                }
                for (int64_t p = unit_pieces; p; p--, own += 4) {
                    I acc[MR][PART];
                    for (int r = 0; r < MR; r++)  // of `= {}` the compiler makes a string instruction, a quarter of the time
                        for (int v = 0; v < PART; v++) acc[r][v] = I{};
#pragma GCC unroll 1
                    for (int64_t i = turns; i; i--, w += PANEL * 32, x += 32) add_wide(acc, w, x, row_bytes);
                    for (int r = 0; r < MR; r++)
                        for (int v = 0; v < PART; v++) {
                            const F factor = load_as<F>(scale + v * W * 4);
                            waiting[r][v] += convert(acc[r][v]) *
                                       (x_scales ? factor * element<float>(of_row(own, r, row_bytes)) : factor);
                        }
                }
            }
            asm("" : : "r"(waiting) : "memory");
            if (to.y) {
                give<x_scales>(c, to, part, rows, f);
                continue;
            }
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) store(to.sums + r * PANEL + (part * PART + v) * W, f[r][v]);
        }
    }
}

// The same in integers, for one sum over all of K: sums i32 [MR, 32].
template <int MR>
void rows_by_wide_codes(const Cuts &c, const Units &units, const unsigned char *rows, int64_t count, Fetch &fetch,
                        Sink &to) {
    for (; count; count--, rows += MR * c.row_bytes, to.pass(MR), fetch.end()) {
        fetch.begin();
#pragma GCC unroll 1
        for (int part = 0; part < PARTS; part++) {
            I acc[MR][PART];
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++)
                    acc[r][v] = units.column ? load_as<I>(to.sums + r * PANEL + (part * PART + v) * W) : I{};
            const unsigned char *w = units.codes + part * PART * W * 4, *x = rows + units.column * 2;
#pragma GCC unroll 1
            for (int64_t i = units.count * 2; i; i--, w += PANEL * 32, x += 32) add_wide(acc, w, x, c.row_bytes);
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++)
                    std::memcpy(to.sums + r * PANEL + (part * PART + v) * W, &acc[r][v], sizeof(I));
        }
    }
}

#endif

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
