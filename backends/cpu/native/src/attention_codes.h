// Codes of a cache as floats in registers, exactly: what the dot products of few queries meet (attention_decode.h).
#pragma once
#include "commands.h"
#include "small_floats.h"
#include "tiles.h"

// Where codes become floats two at a time, by permutes of bytes.
#if OPSOCKET_AVX512 || OPSOCKET_AVX2
#define OPSOCKET_PAIRS 1
#endif

namespace opsocket {
namespace OPSOCKET_LEVEL {

// Of each four: 0, 2, 1, 3.
inline F shuffle_fours(F x) {
#if OPSOCKET_AVX512
    return (F)_mm512_permute_ps((__m512)x, 0xd8);
#elif OPSOCKET_AVX2
    return (F)_mm256_permute_ps((__m256)x, 0xd8);
#else
    return x;
#endif
}

#if OPSOCKET_AVX512
// What codes of 4 and 2 bits stand for, by the 4 bits from where one begins.
struct NibbleTable {
    alignas(64) float values[16] = {};
};
template <int32_t C> constexpr NibbleTable nibble_table() {
    NibbleTable table;
    for (int code = 0; code < 16; code++) table.values[code] = float(code % (1 << kv_bits(C)) - kv_offset(C));
    return table;
}
template <int32_t C> inline constexpr NibbleTable NIBBLE_TABLE = nibble_table<C>();
#endif

// The lower or the upper bf16 of each dword.
inline F half_of(U pairs, int half) { return (F)(half ? pairs & 0xffff0000u : pairs << 16); }

// What makes f32 of integer codes, by the bit where one begins: each is the low digits of a float whose exponent lets its
// lowest bit count 1, with the sign's bit turned over, and one subtraction takes away what the other digits are.
template <int32_t C> struct IntegerTable {
    static constexpr int PLACES = 24 / kv_bits(C) - (24 % kv_bits(C) == 0);
    alignas(64) uint32_t mask[PLACES][W], exponent[PLACES][W];
    alignas(64) float nothing[PLACES][W];

    constexpr IntegerTable() : mask(), exponent(), nothing() {
        for (int i = 0; i < PLACES; i++)
            for (int lane = 0; lane < W; lane++) {
                const int place = i * kv_bits(C);
                mask[i][lane] = ((1u << kv_bits(C)) - 1) << place;
                exponent[i][lane] = uint32_t(127 + 23 - place) << 23 | (C == KV_I8 ? 0x80u << place : 0);
                nothing[i][lane] = float((1 << (23 - place)) + (C == KV_I8 ? 128 : kv_offset(C)));
            }
    }
};
template <int32_t C> inline constexpr IntegerTable<C> INTEGER_TABLE;

// Codes of a dword that `decode_one` takes from one `group_of`.
constexpr int of_group(int32_t code) { return kv_per_dword(code) < 4 ? kv_per_dword(code) : 4; }

#if OPSOCKET_AVX2
// A shuffle that brings each byte of its dword to the upper end, and zeros below it.
struct ByteShuffles {
    alignas(32) uint8_t from[4][32] = {};
    constexpr ByteShuffles() {
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 32; i++) from[r][i] = uint8_t(i % 4 == 3 ? i % 16 - 3 + r : 0x80);
    }
};
inline constexpr ByteShuffles BYTE_SHUFFLES;
#endif

// What numbers that `decode_one` makes are multiples of: integers are the upper bits of a dword at AVX2, where a shuffle and a
// conversion make floats of them (two shifts in place of the shuffle take 1.12 of a Zen 3's time).
constexpr float decoded_unit(int32_t code) {
#if OPSOCKET_AVX2
    if (kv_is_integer(code)) return float(uint32_t(1) << (32 - kv_bits(code)));
#endif
    (void)code;
    return 1.0f;
}

// Codes of some dwords as `decode_one` wants them: 4 group to 4 group + 3.
template <int32_t C> inline U group_of(U x, [[maybe_unused]] int group) {
#if OPSOCKET_AVX2
    if constexpr (kv_is_integer(C) && C != KV_I8) {
        constexpr uint32_t bits = kv_bits(C), upper = (0xffu << (8 - bits) & 0xff) * 0x01010101u;
        const int shift = 8 - int(bits) * (group + 1);
        return ((shift ? x << shift : x) & upper) ^ 0x80808080u;
    }
#endif
    return x;
}

// Number r of each dword, as f32, exactly; of units of decoded_unit. x: of its group.
template <int32_t C> inline F decode_one(U x, int r) {
    if constexpr (C == KV_BF16) return half_of(x, r);
#if OPSOCKET_AVX512
    // A permute looks at no more than 4 bits of its index.
    else if constexpr (kv_bits(C) < 8)
        return (F)_mm512_permutexvar_ps((__m512i)(x >> kv_shift(C, r)), _mm512_load_ps(NIBBLE_TABLE<C>.values));
#elif OPSOCKET_AVX2
    else if constexpr (kv_is_integer(C)) {
        U upper;  // as written here: registers must not hold shuffles while sums are in memory
        asm volatile("vpshufb %2, %1, %0" : "=x"(upper) : "x"(x), "m"(BYTE_SHUFFLES.from[r & 3]));
        return convert((I)upper);
    }
#endif
    else if constexpr (kv_is_integer(C)) {
        const IntegerTable<C> &table = INTEGER_TABLE<C>;
        int place = kv_shift(C, r);
        if (place + kv_bits(C) > 23) x = x >> 16, place -= 16;
        const int i = place / kv_bits(C);
        return (F)((x & load_as<U>(table.mask[i])) ^ load_as<U>(table.exponent[i])) - load(table.nothing[i]);
    }
    else return kv_decode<C>(kv_field<C>(x, r));
}

#if OPSOCKET_AVX512
// The bf16 of each 8-bit code, in two tables of bytes: by the 7 bits beside the sign (i8: by the magnitude).
struct CodeTables {
    alignas(64) unsigned char high[128] = {}, low[128] = {};
};
constexpr int bf16_of_integer(int number) {
    int sign = number < 0 ? 0x8000 : 0, size = number < 0 ? -number : number, shift = 0;
    if (!size) return 0;
    while (size >> (shift + 1)) shift++;
    return sign | (127 + shift) << 7 | ((size << (7 - shift)) & 127);
}
template <int32_t C> constexpr int bf16_of_code(int code) {
    if (kv_is_integer(C)) return bf16_of_integer(code - kv_offset(C));
    constexpr int mantissa = C == KV_F8E5M2 ? 2 : 3, bias = C == KV_F8E5M2 ? 15 : C == KV_F8E4M3FN ? 7 : 8;
    int exponent = code >> mantissa, fraction = code & ((1 << mantissa) - 1);
    if (C == KV_F8E4M3FN && code == 127) return 0x7fc0;
    if (C == KV_F8E5M2 && exponent == 31) return 0x7f80 | fraction << 5;
    if (exponent) return (exponent - bias + 127) << 7 | fraction << (7 - mantissa);
    if (!fraction) return 0;
    int shift = 0;
    while (!(fraction << shift >> mantissa)) shift++;
    return (1 - shift - bias + 127) << 7 | ((fraction << shift) & ((1 << mantissa) - 1)) << (7 - mantissa);
}
template <int32_t C> constexpr CodeTables code_tables() {
    CodeTables tables;
    for (int code = 0; code < 128; code++) {
        tables.high[code] = (unsigned char)(bf16_of_code<C>(code) >> 8);
        tables.low[code] = (unsigned char)(bf16_of_code<C>(code) & 255);
    }
    return tables;
}
template <int32_t C> inline constexpr CodeTables CODE_TABLES = code_tables<C>();

// The codes of a vector of dwords to two vectors of bf16, exactly. In each 128-bit lane of four dwords, `even` has those of
// the first two, `odd` of the last two; the four codes of a dword stay together, in their order.
template <int32_t C> struct CodeDecoder {
    __m512i high0 = _mm512_load_si512(CODE_TABLES<C>.high), high1 = _mm512_load_si512(CODE_TABLES<C>.high + 64);
    __m512i low0 = _mm512_load_si512(CODE_TABLES<C>.low), low1 = _mm512_load_si512(CODE_TABLES<C>.low + 64);

    void operator()(U dwords, U &even, U &odd) const {
        const __m512i x = (__m512i)dwords, index = C == KV_I8 ? _mm512_abs_epi8(x) : x;
        __m512i high = _mm512_permutex2var_epi8(high0, index, high1);
        __m512i low = _mm512_permutex2var_epi8(low0, index, low1);
        high = _mm512_ternarylogic_epi32(high, x, _mm512_set1_epi8(char(0x80)), 0xf8);
        if constexpr (C == KV_F8E4M3FNUZ)  // NaN is where -0 would be
            high = _mm512_mask_mov_epi8(
                high, _mm512_cmpeq_epi8_mask(x, _mm512_set1_epi8(char(0x80))), _mm512_set1_epi8(-1)
            );
        even = (U)_mm512_unpacklo_epi8(low, high);
        odd = (U)_mm512_unpackhi_epi8(low, high);
    }
};

// The bf16 of codes of 4 and 2 bits, by the 5 bits from where one begins: a permute of words looks at no more.
struct WordTable {
    alignas(64) uint16_t words[32] = {};
};
template <int32_t C> constexpr WordTable word_table() {
    WordTable table;
    for (int code = 0; code < 32; code++) table.words[code] = uint16_t(bf16_of_code<C>(code % (1 << kv_bits(C))));
    return table;
}
template <int32_t C> inline constexpr WordTable WORD_TABLE = word_table<C>();

// Codes of 4 and 2 bits, two of each dword: step i of n / 2 has 4 (i / 2) + i % 2 and the one two after it.
template <int32_t C> inline __m512i decode_words(__m512i x, int step) {
    int shift = step % 2 * 8 + step / 2 * kv_bits(C);
    return _mm512_permutexvar_epi16(shift ? _mm512_srli_epi16(x, shift) : x, _mm512_load_si512(WORD_TABLE<C>.words));
}

// Sums of pairs of neighbouring lanes of a and b, in the order of the dwords that they came from.
template <int32_t C> inline F join_pairs(F a, F b) {
    const __m512i f16 = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i codes = _mm512_setr_epi32(0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
    const __m512i even = C == KV_F16 ? f16 : codes, odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return (F)_mm512_permutex2var_ps((__m512)a, even, (__m512)b) + (F)_mm512_permutex2var_ps((__m512)a, odd, (__m512)b);
}
inline F broadcast_pair(const float *p) { return (F)_mm512_broadcastsd_pd(_mm_load_sd((const double *)p)); }
#elif OPSOCKET_AVX2
// The codes of a vector of dwords to two vectors of bf16, exactly. In each 128-bit lane of four dwords, `even` has those of
// the first two, `odd` of the last two; the four codes of a dword stay together, in their order.
template <int32_t C> struct CodeDecoder {
    void operator()(U dwords, U &even, U &odd) const {
        static_assert(C == KV_F8E4M3FN);
        __m256i upper, lower;
        bf16_bytes((I)dwords, upper, lower);
        even = (U)_mm256_unpacklo_epi8(lower, upper);
        odd = (U)_mm256_unpackhi_epi8(lower, upper);
    }
};

// Sums of pairs of neighbouring lanes of a and b, in the order of the dwords that they came from.
template <int32_t C> inline F join_pairs(F a, F b) {
    static_assert(C == KV_F8E4M3FN);
    return (F)_mm256_hadd_ps((__m256)a, (__m256)b);
}
inline F broadcast_pair(const float *p) { return (F)_mm256_broadcast_sd((const double *)p); }
#endif

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
