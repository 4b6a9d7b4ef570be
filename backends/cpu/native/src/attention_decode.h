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
// - integer codes without that instruction: under the same terms, int8 digits of queries and probabilities (digits.h); without
//   an instruction for these too, words of queries where they move no logit by more than digits do.
// - other codes of 8 bits and less: exact as f32 and as bf16; then as floats. Scales of tokens join the logits and the
//   probabilities.
#pragma once
#include "attention_codes.h"
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

// DOT_FEW_DIGITS: the lowest digit is left out. DOT_WORDS: queries are words (digits.h); beside DOT_F32.
enum DecodeDot : int32_t { DOT_F32, DOT_BF16, DOT_DIGITS, DOT_FEW_DIGITS, DOT_WORDS };

// Of a query 3 digits are as good as f32, and 2, or a word, where what is left out moves no logit by more than 2^-10: a quarter
// of what the probability may be rounded by. Weights of one chunk differ by more: half of SmolLM2's chunks have some
// below 2^-16 of the largest, of which 3 digits leave less than bf16's 8 bits; an eighth have some below 2^-24.
constexpr int K_DIGITS = 3, V_DIGITS = 4;

// Up to DECODE_ROWS query rows of one KV head. f32: values [dims][rows], or as decode_order has them; bf16: packed pairs
// [dims / 2][rows], or twos of pairs [dims / 4][rows][2]; K_DIGITS digits (digits.h): packed [dims / 4][rows][4].
struct DecodeQuery {
    int32_t rows, dot, coarse_dot;
    float scale[DECODE_ROWS];  // what dot products are multiplied by
    int32_t first[DECODE_ROWS][4];  // what sums of products with digits begin with
    float coarse_until;  // the largest scale of a token with which products of kind coarse_dot do; -1: with none
    union {
        float *values;
        int32_t *packed;
    };
#if OPSOCKET_WORDS
    int32_t *words;  // beside values: pairs [dims / 4][rows][2] of 16 bits
    float words_scale[DECODE_ROWS];
    int32_t words_first[DECODE_ROWS];
#endif
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
constexpr DecodeOrder decode_order(int32_t code, int32_t dot) {
    if (dot == DOT_BF16) return kv_bits(code) < 8 ? ORDER_SHUFFLED : ORDER_TWOS;
#if OPSOCKET_AVX512
    if (code == KV_F16) return ORDER_TWOS;
    if (kv_bits(code) == 8 && !kv_is_integer(code)) return ORDER_SHUFFLED;
#elif OPSOCKET_AVX2
    if (code == KV_F8E4M3FN) return ORDER_SHUFFLED;
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

// sum + a * b. Where registers are few, as written here: nothing of one step is moved to another then, and no sum from register
// to register. Else the compiler begins with what several steps need, and keeps sums in memory meanwhile.
inline void add_product(F &sum, F a, F b) {
#if OPSOCKET_AVX2
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
    sum += a * b;
#endif
}

template <class Kernels> concept ByWords = requires { Kernels::words; };

// Of kernels for a cache's code and `rows` rows, the one for products of kind `dot`. Kernels: a template with `f32`,
// and `pairs`, `bf16`, `digits`, `few_digits` and `words` where the level has them.
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
#if OPSOCKET_WORDS
            if constexpr (kv_is_integer(C))
                if constexpr (ByWords<K>)
                    if (dot == DOT_WORDS) return K::words;
#endif
#if OPSOCKET_PAIRS
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

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
