// Attention of one query of a sequence over tiles of a paged cache (tiles.h): what a decode step is. A row is one query
// head.
//
// Work goes by chunks of 64 keys of one KV head. In a chunk: scores of all rows, 16 keys in a vector; knobs; one step
// of the online softmax (Milakov and Gimelshein 2018); then values, 16 dimensions in a vector. A byte of the cache is
// read once for up to 4 rows, decoded in registers. A part is walked chunk by chunk and, within a chunk, head by head,
// so that the pages of a chunk are read from end to end, each as one run.
//
// Products, by what the cache holds:
// - floats: exact in f32, f32 FMA. Where the query is bf16 already, or probabilities may be rounded to bf16, vdpbf16ps.
// - codes of 8 bits and less: exact as bf16 too, by table permutes; then as floats. Scales of tokens join the logits
//   and the probabilities.
#pragma once
#include "attention_part.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int DECODE_ROWS = 4;
constexpr int DECODE_TILES = 4;
constexpr int DECODE_TOKENS = DECODE_TILES * TILE;

enum DecodeDot : int32_t { DOT_F32, DOT_BF16 };

// Up to DECODE_ROWS query rows of one KV head. values: [dims][rows] f32, in pairs where the cache is decoded so.
// packed: bf16 pairs [dims / 2][rows], or [dims / 4][rows][2], dwords.
struct DecodeQuery {
    int32_t rows, dot;
    float scale;  // what dot products are multiplied by
    float *values;
    int32_t *packed;
};

// Running softmax of a query's rows: maximum, sum, and output [rows][width] that is still to be divided by the sum.
struct DecodeState {
    float largest[DECODE_ROWS], sum[DECODE_ROWS];
    float *out;
};

// Floats that a query of `rows` rows needs.
int64_t decode_query_floats(int64_t dim, int rows);

// Prepares rows q[rows, dim] (f32; `bf16`: they were bf16) for keys of `k`, of KV head `head`; `memory` is 64-byte
// aligned and has room for decode_query_floats. Static scales of keys are folded in.
void decode_prepare(
    DecodeQuery &query, float *memory, const KVTiles &k, int64_t head, int rows, const float *q, bool bf16, float scale
);

// Logits of one tile, before scales of tokens, softcap and ALiBi: s[row * DECODE_TOKENS + token]; prefetches what lies
// at `ahead`.
using DecodeScores = void (*)(const DecodeQuery &query, const unsigned char *tile, const unsigned char *ahead,
                              int64_t vectors, float *s);
DecodeScores decode_scores(int32_t code, int32_t dot, int rows);

// What values are multiplied by in one chunk. weights: f32 [rows][DECODE_TOKENS] in the cache's pairs, or bf16
// [rows][DECODE_TOKENS].
struct DecodeWeights {
    const unsigned char *tiles[DECODE_TILES], *ahead[DECODE_TILES];
    int32_t count;  // of tiles
    int64_t width;  // of a row
    float carry[DECODE_ROWS];
    alignas(64) float p[DECODE_ROWS * DECODE_TOKENS];
    alignas(64) unsigned char packed[DECODE_ROWS * 2 * DECODE_TOKENS];
};

// out = out * carry + weights * values
using DecodeValues = void (*)(const DecodeWeights &weights, float *out);
DecodeValues decode_values(int32_t code, int32_t dot, int rows);

constexpr int32_t decode_dot(int32_t code, bool bf16) {
#if OPSOCKET_AVX512_BF16
    if (bf16 && (code == KV_BF16 || kv_bits(code) <= 8)) return DOT_BF16;
#endif
    (void)bf16;
    (void)code;
    return DOT_F32;
}

// How f32 numbers that are broadcast stand in memory, for codes that are decoded in pairs: 2: as they are; 4: in the
// order 0, 2, 1, 3. 1: one by one.
constexpr int decode_pairs(int32_t code) {
#if OPSOCKET_AVX512
    if (code == KV_F16) return 2;
    if (kv_bits(code) <= 8) return 4;
#endif
    (void)code;
    return 1;
}

// f(Count<rows>()).
template <class Fn> inline auto with_rows(int rows, const Fn &f) {
    static_assert(DECODE_ROWS == 4);
    return rows == 1 ? f(Count<1>()) : rows == 2 ? f(Count<2>()) : rows == 3 ? f(Count<3>()) : f(Count<4>());
}

// Of kernels for a cache's code and `rows` rows, the one for products of kind `dot`. Kernels: a template with `f32`,
// and `pairs` and `bf16` where the level has them.
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
#if OPSOCKET_AVX512
            if constexpr (decode_pairs(C) > 1) return K::pairs;
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

inline void prefetch(const unsigned char *p) {
    __builtin_prefetch(p, 0, 2);
}

// Number r of each dword, as f32.
template <int32_t C> inline F decode_one(U x, int r) {
    if constexpr (C == KV_BF16) return (F)(r ? x & 0xffff0000u : x << 16);
    else if constexpr (C == KV_I8) return convert((I)(x << (24 - 8 * r)) >> 24);
    else return kv_decode<C>(kv_field<C>(x, r));
}

#if OPSOCKET_AVX512
// The bf16 of each code, in two tables of bytes: of 8-bit codes by the 7 bits beside the sign (i8: by the magnitude).
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
    for (int code = 0; code < (kv_bits(C) == 8 ? 128 : 1 << kv_bits(C)); code++) {
        tables.high[code] = (unsigned char)(bf16_of_code<C>(code) >> 8);
        tables.low[code] = (unsigned char)(bf16_of_code<C>(code) & 255);
    }
    return tables;
}
template <int32_t C> inline constexpr CodeTables CODE_TABLES = code_tables<C>();

// The 64 codes of one field of a vector of dwords to twice 32 bf16, exactly. In each 128-bit lane of four dwords,
// `even` has those of the first two, `odd` of the last two; the four codes of a dword stay together, in their order.
template <int32_t C> struct CodeDecoder {
    static constexpr int FIELDS = kv_per_dword(C) / 4;
    __m512i high0 = _mm512_load_si512(CODE_TABLES<C>.high), high1 = _mm512_load_si512(CODE_TABLES<C>.high + 64);
    __m512i low0 = _mm512_load_si512(CODE_TABLES<C>.low), low1 = _mm512_load_si512(CODE_TABLES<C>.low + 64);

    void operator()(__m512i x, int field, __m512i &even, __m512i &odd) const {
        __m512i high, low;
        if constexpr (kv_bits(C) == 8) {
            __m512i index = C == KV_I8 ? _mm512_abs_epi8(x) : x;
            high = _mm512_permutex2var_epi8(high0, index, high1);
            low = _mm512_permutex2var_epi8(low0, index, low1);
            high = _mm512_ternarylogic_epi32(high, x, _mm512_set1_epi8(char(0x80)), 0xf8);
            if constexpr (C == KV_F8E4M3FNUZ)  // NaN is where -0 would be
                high = _mm512_mask_mov_epi8(
                    high, _mm512_cmpeq_epi8_mask(x, _mm512_set1_epi8(char(0x80))), _mm512_set1_epi8(-1)
                );
        } else {
            constexpr int bits = kv_bits(C);
            x = _mm512_and_si512(field ? _mm512_srli_epi32(x, bits * field) : x, _mm512_set1_epi8((1 << bits) - 1));
            high = _mm512_permutexvar_epi8(x, high0);
            low = _mm512_permutexvar_epi8(x, low0);
        }
        even = _mm512_unpacklo_epi8(low, high);
        odd = _mm512_unpackhi_epi8(low, high);
    }
};

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
