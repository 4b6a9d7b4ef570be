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
// at most 2 * 2 * 63 * 128. Of longer codes their nibbles are multiplied one after the other.
#if OPSOCKET_AVX2 && !OPSOCKET_AVX_VNNI
#define OPSOCKET_SHORT_SUMS 1
inline I steps_begun(I) { return I{}; }
inline I add_products(I sum, I w, I a) {
    __m256i all = _mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)a));
    asm("" : "+x"(all));  // or the compiler makes all products of a slab first, and adds them up from memory
    return (I)all;
}
template <int FACTOR> inline I steps_ended(I acc, I sum) {
    return acc + (I)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(FACTOR));
}
constexpr int nibbles_of(int bits) { return bits > 6 ? 2 : 1; }
constexpr int steps_of(int bits) { return bits == 5 ? 4 : bits == 6 ? 2 : 8; }
#else
inline I steps_begun(I acc) { return acc; }
inline I add_products(I sum, I w, I a) { return dot_u8s8(sum, w, a); }
template <int FACTOR> inline I steps_ended(I, I sum) { return sum; }
constexpr int nibbles_of(int) { return 1; }
constexpr int steps_of(int) { return 8; }
#endif
constexpr int MOST_NIBBLES = nibbles_of(8);

// What stands at p in the first of some rows, in row r: from few registers, where a pointer for each row would take six.
inline const unsigned char *of_row(const unsigned char *p, int r, int64_t row_bytes) {
    return r < 3 ? p + r * row_bytes : p + 3 * row_bytes + (r - 3) * row_bytes;
}

// What BY_TABLE looks up: bytes, or each nibble of them.
struct Tables {
    I of[2];

    explicit Tables(const uint8_t *table) {
        if (!table) return;
        of[0] = repeated(table);
        if (MOST_NIBBLES == 2) of[1] = (of[0] >> 4) & 0x0f0f0f0f, of[0] &= 0x0f0f0f0f;
    }
};

// acc += codes of one slab of a panel, from `part` vectors on, times the rows' codes from x on, of a step STEP_BYTES
// behind those of the step before. TILE: codes are bytes that hold BITS or fewer.
template <int MR, int BITS, int SLAB, int CHAINS, bool TILE, int STEP_BYTES = 4, int PART>
inline __attribute__((always_inline)) void add_slab(I (&acc)[CHAINS][MR][PART], const unsigned char *w,
                                                    const unsigned char *x, int64_t row_bytes,
                                                    [[maybe_unused]] const Tables &tables) {
    constexpr int LOW = TILE ? 8 : low_bits(BITS), FIELDS = 8 / LOW, STEPS = SLAB / 4 / FIELDS;
    constexpr int NIBBLES = nibbles_of(BITS), HELD = steps_of(BITS);
    const unsigned char *row[MR];
    for (int r = 0; r < MR; r++) row[r] = of_row(x, r, row_bytes);
    I sum[CHAINS][MR][PART];
    auto begin = [&] {
        for (int chain = 0; chain < CHAINS; chain++)
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) sum[chain][r][v] = steps_begun(acc[chain][r][v]);
    };
    auto end = [&](bool upper) {
        for (int chain = 0; chain < CHAINS; chain++)
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++)
                    acc[chain][r][v] = upper ? steps_ended<16>(acc[chain][r][v], sum[chain][r][v])
                                             : steps_ended<1>(acc[chain][r][v], sum[chain][r][v]);
    };
#pragma GCC unroll 2
    for (int nibble = 0; nibble < NIBBLES; nibble++) {
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; s++) {
            I packed[PART];
            for (int v = 0; v < PART; v++) packed[v] = load_as<I>(w + s * PANEL * 4 + v * W * 4);
#pragma GCC unroll 4
            for (int field = 0; field < FIELDS; field++) {
                if ((s * FIELDS + field) % HELD == 0) begin();
                I codes[PART];
                for (int v = 0; v < PART; v++) {
                    codes[v] = LOW == 8 ? packed[v] : (packed[v] >> (LOW * field)) & (LOW == 4 ? 0x0f0f0f0f : 0x03030303);
                    if constexpr (!TILE && BITS == BY_TABLE) {
                        codes[v] = look_up(tables.of[nibble], codes[v]);
                    } else if constexpr (!TILE && BITS != LOW) {
                        codes[v] = codes[v] | upper_bits<BITS, SLAB>(w, field * STEPS + s, v);
                    } else if constexpr (NIBBLES == 2) {
                        codes[v] = (packed[v] >> (4 * nibble)) & 0x0f0f0f0f;
                    }
                }
#pragma GCC unroll 8
                for (int r = 0; r < MR; r++) {
                    I a = broadcast(row[r] + STEP_BYTES * (field * STEPS + s));
                    for (int v = 0; v < PART; v++) {
                        I &to = sum[(field * STEPS + s) % CHAINS][r][v];
                        to = add_products(to, codes[v], a);
                    }
                }
                if ((s * FIELDS + field) % HELD == HELD - 1 || s * FIELDS + field == STEPS * FIELDS - 1) end(nibble);
            }
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
