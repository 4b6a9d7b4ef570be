// Attention of few queries of a sequence over tiles of a paged cache (tiles.h): what a decode step is, and what
// verifying a few drafted tokens is. A row is one query head of one query.
//
// Work goes by chunks of 64 keys of one KV head. In a chunk, for each block of rows: scores, 16 keys in a vector; knobs
// and masks; one step of the online softmax (Milakov and Gimelshein 2018); then values, 16 dimensions in a vector. A
// byte of the cache is read from memory once for all rows of its head and decoded in registers once for each block. A
// part is walked chunk by chunk and, within a chunk, head by head, so that the pages of a chunk are read from end to
// end, each as one run.
//
// Products, by what the cache holds:
// - floats: exact in f32, f32 FMA. Where the query is bf16 already, or probabilities may be rounded to bf16, vdpbf16ps.
// - integer codes without that instruction: under the same terms, int8 digits of queries and probabilities (digits.h).
// - other codes of 8 bits and less: exact as f32 and as bf16; then as floats. Scales of tokens join the logits and the
//   probabilities.
#pragma once
#include "attention_part.h"
#include "digits.h"
#include "processor.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

#if OPSOCKET_AVX512
constexpr int DECODE_ROWS = 8;  // two sums each, and as much again for what they are made of
#else
constexpr int DECODE_ROWS = 4;
#endif
constexpr int DECODE_QUERIES = 8;    // of a sequence
constexpr int MOST_HEAD_ROWS = 32;   // of a KV head: beyond, tiles that are widened once for all rows cost less
constexpr int DECODE_TILES = 4;
constexpr int DECODE_TOKENS = DECODE_TILES * TILE;

// DOT_FEW_DIGITS: the lowest digit is left out.
enum DecodeDot : int32_t { DOT_F32, DOT_BF16, DOT_DIGITS, DOT_FEW_DIGITS };

// Of a query 3 digits are as good as f32, and 2 where what the third one adds moves no logit by more than 2^-10: a quarter
// of what the probability may be rounded by. Weights of one chunk differ by more: half of SmolLM2's chunks have some
// below 2^-16 of the largest, of which 3 digits leave less than bf16's 8 bits; an eighth have some below 2^-24.
constexpr int K_DIGITS = 3, V_DIGITS = 4;

// Up to DECODE_ROWS query rows of one KV head. f32: values [dims][rows], or as decode_order has them; bf16: packed pairs
// [dims / 2][rows], or twos of pairs [dims / 4][rows][2]; K_DIGITS digits (digits.h): packed [dims / 4][rows][4].
struct DecodeQuery {
    int32_t rows, dot;
    float scale[DECODE_ROWS];  // what dot products are multiplied by
    int32_t first[DECODE_ROWS][4];  // what sums of products with digits begin with
    float few_digits_until;  // the largest scale of a token with which the lowest digit may be left out
    union {
        float *values;
        int32_t *packed;
    };
};

// Running softmax of a query's rows: maximum, sum, and output [rows][width] that is still to be divided by the sum.
struct DecodeState {
    alignas(64) float largest[W];
    alignas(64) float sum[W];
    float *out;
};
static_assert(DECODE_ROWS <= W);

// Floats that a query of `rows` rows needs.
int64_t decode_query_floats(int64_t dim, int rows);

// Prepares rows q[rows, dim] (f32; `bf16`: they were bf16) for keys of `k`, of KV head `head`; `memory` is 64-byte
// aligned and has room for decode_query_floats. Static scales of keys are folded in. bf16_probabilities: whether all that
// becomes of logits may be rounded so.
void decode_prepare(
    DecodeQuery &query, float *memory, const KVTiles &k, int64_t head, int rows, const float *q, bool bf16, float scale,
    bool bf16_probabilities
);

// Keys of a chunk: its tiles, and what is to be prefetched while they are read. All four are read: where a chunk has
// fewer, the last are any of it, and logits of theirs come to nothing.
struct DecodeKeys {
    const unsigned char *tiles[DECODE_TILES], *ahead[DECODE_TILES];
    int64_t vectors;    // of a tile
    int64_t scales_at;  // byte of a tile where scales of tokens begin; 0: there are none
};

// Logits of a chunk, before softcap and ALiBi: s[row * DECODE_TOKENS + token].
using DecodeScores = void (*)(const DecodeQuery &query, const DecodeKeys &keys, float *s);
DecodeScores decode_scores(int32_t code, int32_t dot, int rows);

// What values are multiplied by in one chunk. weights: f32 p[rows][DECODE_TOKENS] in the cache's pairs; or bf16
// [rows][DECODE_TOKENS]; or, beside p, V_DIGITS digits [rows][DECODE_TOKENS / 4][4], in units of each row.
struct DecodeWeights {
    const unsigned char *tiles[DECODE_TILES], *ahead[DECODE_TILES];
    int32_t count;  // of tiles
    int64_t width;  // of a row
    alignas(64) float carry[W];
    alignas(64) float unit[W];
    int32_t first[DECODE_ROWS][4];  // what sums of products with digits begin with
    alignas(64) float p[DECODE_ROWS * DECODE_TOKENS];
    alignas(64) unsigned char packed[DECODE_ROWS * 4 * DECODE_TOKENS];
};

// out = out * carry + weights * values
using DecodeValues = void (*)(const DecodeWeights &weights, float *out);
DecodeValues decode_values(int32_t code, int32_t dot, int rows);

constexpr int32_t decode_dot(int32_t code, bool bf16) {
#if OPSOCKET_AVX512_BF16
    if (bf16 && (code == KV_BF16 || kv_bits(code) <= 8)) return DOT_BF16;
#elif OPSOCKET_DIGITS
    if (bf16 && kv_is_integer(code)) return DOT_DIGITS;
#endif
    (void)bf16;
    (void)code;
    return DOT_F32;
}

// How numbers that are broadcast stand in memory, by how a cache's numbers come out of a dword (or two of them, f16).
enum DecodeOrder : int32_t {
    ORDER_SINGLE,   // f32, one by one
    ORDER_TWOS,     // two at once, as they are: f32 by 2, bf16 by 2 or, where a dword has four codes, by 4
    ORDER_SHUFFLED  // of each four: 0, 2, 1, 3, two at once
};
#if OPSOCKET_AVX512
constexpr int SHUFFLED = 0xd8;  // what makes that order of a vector, for a permute
#endif
constexpr DecodeOrder decode_order(int32_t code, int32_t dot) {
    if (dot == DOT_BF16) return kv_bits(code) < 8 ? ORDER_SHUFFLED : ORDER_TWOS;
#if OPSOCKET_AVX512
    if (code == KV_F16) return ORDER_TWOS;
    if (kv_bits(code) == 8 && !kv_is_integer(code)) return ORDER_SHUFFLED;
#endif
    return ORDER_SINGLE;
}

// Rows of the next block where `left` are: one of 1, 2, 3, 4, 6 and 8, for which there are kernels.
constexpr int block_rows(int64_t left) {
    if (left >= DECODE_ROWS) return left == 9 && DECODE_ROWS > 6 ? 6 : DECODE_ROWS;
    return left == 7 ? 4 : left == 5 ? 3 : int(left);
}

// f(Count<rows>()), rows as block_rows gives them.
template <class Fn> inline auto with_rows(int rows, const Fn &f) {
    if constexpr (DECODE_ROWS == 8)
        if (rows > 4) return rows == 8 ? f(Count<8>()) : f(Count<6>());
    return rows == 1 ? f(Count<1>()) : rows == 2 ? f(Count<2>()) : rows == 3 ? f(Count<3>()) : f(Count<4>());
}

// Of kernels for a cache's code and `rows` rows, the one for products of kind `dot`. Kernels: a template with `f32`,
// and `pairs`, `bf16`, `digits` and `few_digits` where the level has them.
template <class Function, template <int32_t, int> class Kernels>
inline Function choose_decode(int32_t code, int32_t dot, int rows) {
    Function chosen = nullptr;
    with_code(code, [&](auto code_of) {
        constexpr int32_t C = decltype(code_of)::value;
        chosen = with_rows(rows, [&](auto rows_of) -> Function {
            using K = Kernels<C, decltype(rows_of)::value>;
#if OPSOCKET_AVX512_BF16
            if constexpr (decode_dot(C, true) == DOT_BF16)
                if (dot == DOT_BF16) return K::bf16;
#endif
#if OPSOCKET_DIGITS
            if constexpr (decode_dot(C, true) == DOT_DIGITS)
                if (dot >= DOT_DIGITS) return dot == DOT_DIGITS ? K::digits : K::few_digits;
#endif
#if OPSOCKET_AVX512
            if constexpr (decode_order(C, DOT_F32) != ORDER_SINGLE) return K::pairs;
            else
#endif
            {
                (void)dot;
                return K::f32;
            }
        });
    });
    return chosen;
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

// Number r of each dword, as f32, exactly.
template <int32_t C> inline F decode_one(U x, int r) {
    if constexpr (C == KV_BF16) return (F)(r ? x & 0xffff0000u : x << 16);
#if OPSOCKET_AVX512
    // As the low digits of a float between 2^23 and 2^24, or 2^15 and 2^16, with the sign's bit turned over: one
    // instruction, and one that takes away what the other digits are.
    else if constexpr (C == KV_I8) {
        if (r >= 2) x = x >> 16;
        return r % 2 ? (F)((x & 0xff00u) ^ 0x47008000u) - 32896.0f : (F)((x & 0xffu) ^ 0x4b000080u) - 8388736.0f;
    }
    // A permute looks at no more than 4 bits of its index.
    else if constexpr (kv_bits(C) < 8)
        return (F)_mm512_permutexvar_ps((__m512i)(x >> kv_shift(C, r)), _mm512_load_ps(NIBBLE_TABLE<C>.values));
#else
    else if constexpr (C == KV_I8) return convert((I)(x << (24 - 8 * r)) >> 24);
#endif
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

// The 64 codes of a vector of dwords to twice 32 bf16, exactly. In each 128-bit lane of four dwords, `even` has those of
// the first two, `odd` of the last two; the four codes of a dword stay together, in their order.
template <int32_t C> struct CodeDecoder {
    __m512i high0 = _mm512_load_si512(CODE_TABLES<C>.high), high1 = _mm512_load_si512(CODE_TABLES<C>.high + 64);
    __m512i low0 = _mm512_load_si512(CODE_TABLES<C>.low), low1 = _mm512_load_si512(CODE_TABLES<C>.low + 64);

    void operator()(__m512i x, __m512i &even, __m512i &odd) const {
        __m512i index = C == KV_I8 ? _mm512_abs_epi8(x) : x;
        __m512i high = _mm512_permutex2var_epi8(high0, index, high1);
        __m512i low = _mm512_permutex2var_epi8(low0, index, low1);
        high = _mm512_ternarylogic_epi32(high, x, _mm512_set1_epi8(char(0x80)), 0xf8);
        if constexpr (C == KV_F8E4M3FNUZ)  // NaN is where -0 would be
            high = _mm512_mask_mov_epi8(
                high, _mm512_cmpeq_epi8_mask(x, _mm512_set1_epi8(char(0x80))), _mm512_set1_epi8(-1)
            );
        even = _mm512_unpacklo_epi8(low, high);
        odd = _mm512_unpackhi_epi8(low, high);
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
template <int32_t C> inline __m512 join_pairs(__m512 a, __m512 b) {
    const __m512i f16 = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i codes = _mm512_setr_epi32(0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
    __m512i even = C == KV_F16 ? f16 : codes, odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
}
inline __m512 broadcast_pair(const float *p) { return (__m512)_mm512_broadcastsd_pd(_mm_load_sd((const double *)p)); }
#endif

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
