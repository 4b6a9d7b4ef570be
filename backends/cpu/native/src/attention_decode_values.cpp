// Weighted sums of values: 16 dimensions of a tile in a vector, over the tiles of a chunk.
#include "attention_decode.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// ---- one by one, at every level

// V vectors of W dims from dim `d`.
template <int32_t C, int R, int V> static void sum_f32(const DecodeWeights &w, int64_t d, float *out) {
    constexpr int N = kv_per_dword(C), G = of_group(C), ROWS = TILE / N;
    F sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = load(out + r * w.width + d + v * W) * w.carry[r];
    for (int t = 0; t < w.count; t++) {
        const unsigned char *tile = w.tiles[t] + d * 4, *ahead = w.ahead[t] + d * 4;
        const float *p = w.p + t * TILE;
        for (int i = 0; i < ROWS; i++) {
            U x[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                x[v] = load_as<U>(tile + (i * w.width + v * W) * 4);
                if ((d + v * W) % 16 == 0) prefetch(ahead + (i * w.width + v * W) * 4);
            }
#pragma GCC unroll 4
            for (int group = 0; group < N / G; group++) {
                U codes[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) codes[v] = group_of<C>(x[v], group);
#pragma GCC unroll 4
                for (int j = group * G; j < group * G + G; j++) {
                    F value[V];
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) value[v] = decode_one<C>(codes[v], j);
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        F weight = set(p[r * DECODE_TOKENS + i * N + j]);
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) add_product(sums[r][v], value[v], weight);
                    }
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(out + r * w.width + d + v * W, sums[r][v]);
}

#if OPSOCKET_PAIRS
// Floats widened two at a time (two tokens of one dim in neighbouring lanes), V vectors of W dims.
template <int32_t C, int R, int V> static void sum_pairs(const DecodeWeights &w, int64_t d, float *out) {
    constexpr int N = kv_per_dword(C), ROWS = TILE / N;
    F sums[R][V][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v][0] = sums[r][v][1] = set(0.0f);
    [[maybe_unused]] const CodeDecoder<C == KV_F16 ? int32_t(KV_F8E4M3FN) : C> decode;
    for (int t = 0; t < w.count; t++) {
        const unsigned char *tile = w.tiles[t] + d * 4, *ahead = w.ahead[t] + d * 4;
        const float *p = w.p + t * TILE;
        for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) {
                const unsigned char *x = tile + (i * w.width + v * W) * 4;
                if ((d + v * W) % 16 == 0) prefetch(ahead + (i * w.width + v * W) * 4);
                [[maybe_unused]] U even, odd;
                if constexpr (C != KV_F16) {
                        decode(load_as<U>(x), even, odd);
                }
#pragma GCC unroll 2
                for (int half = 0; half < N / 2; half++) {
                    F a, b;
                    if constexpr (C == KV_F16) a = load_half(x), b = load_half(x + W * 2);
                    else a = half_of(even, half), b = half_of(odd, half);
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        const F weight = broadcast_pair(p + r * DECODE_TOKENS + i * N + half * 2);
                        add_product(sums[r][v][0], a, weight);
                        add_product(sums[r][v][1], b, weight);
                    }
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            float *o = out + r * w.width + d + v * W;
            store(o, load(o) * w.carry[r] + join_pairs<C>(sums[r][v][0], sums[r][v][1]));
        }
}
#endif

#if OPSOCKET_AVX512_BF16
template <int32_t C, int R, int V> static void sum_bf16(const DecodeWeights &w, int64_t d, float *out) {
    constexpr int N = kv_per_dword(C), ROWS = TILE / N;
    constexpr int HALVES = kv_bits(C) == 8 ? 2 : 1, STEPS = kv_bits(C) < 8 ? N / 2 : 1;
    __m512 sums[R][V][HALVES];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; half++) sums[r][v][half] = _mm512_setzero_ps();
    for (int t = 0; t < w.count; t++) {
        const unsigned char *tile = w.tiles[t] + d * 4, *ahead = w.ahead[t] + d * 4;
        const int32_t *p = reinterpret_cast<const int32_t *>(w.packed) + t * 8;
        for (int i = 0; i < ROWS; i++) {
            __m512i dwords[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                dwords[v] = _mm512_load_si512(tile + (i * w.width + v * 16) * 4);
                prefetch(ahead + (i * w.width + v * 16) * 4);
            }
#pragma GCC unroll 8
            for (int step = 0; step < STEPS; step++) {
                __m512i x[V][HALVES];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    if constexpr (C == KV_BF16) x[v][0] = dwords[v];
                    else if constexpr (kv_bits(C) < 8) x[v][0] = decode_words<C>(dwords[v], step);
                    else {
                        U even, odd;
                        CodeDecoder<C>()((U)dwords[v], even, odd);
                        x[v][0] = (__m512i)even, x[v][1] = (__m512i)odd;
                    }
                }
                const int32_t *at = p + (i * STEPS + step) * HALVES;
#pragma GCC unroll 8
                for (int r = 0; r < R; r++, at += DECODE_TOKENS / 2) {
                    __m512i weight = HALVES == 1 ? _mm512_set1_epi32(*at) : (__m512i)broadcast_pair((const float *)at);
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++)
#pragma GCC unroll 2
                        for (int half = 0; half < HALVES; half++)
                            sums[r][v][half] =
                                _mm512_dpbf16_ps(sums[r][v][half], (__m512bh)x[v][half], (__m512bh)weight);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            float *o = out + r * w.width + d + v * 16;
            F all = (F)sums[r][v][0];
            if constexpr (HALVES == 2) all = join_pairs<C>((F)sums[r][v][0], (F)sums[r][v][1]);
            store(o, load(o) * w.carry[r] + all);
        }
}
#endif

#if OPSOCKET_DIGITS
// Of R rows from `row` on.
template <int32_t C, int R, int V, int LEFT_OUT> static void sum_digits(const DecodeWeights &w, int row, int64_t d, float *out) {
    constexpr int DIGITS = V_DIGITS - LEFT_OUT, STEPS = kv_per_dword(C) / 4, ROWS = TILE / kv_per_dword(C);
    I sums[R][V][DIGITS];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
#pragma GCC unroll 4
            for (int n = 0; n < DIGITS; n++) sums[r][v][n] = set(w.first[row + r][LEFT_OUT + n]);
    for (int t = 0; t < w.count; t++) {
        const unsigned char *tile = w.tiles[t] + d * 4, *ahead = w.ahead[t] + d * 4;
        const int32_t *p = reinterpret_cast<const int32_t *>(w.packed) + row * DECODE_TOKENS + t * TILE;
        for (int i = 0; i < ROWS; i++) {
            I dwords[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                dwords[v] = load_as<I>(tile + (i * w.width + v * W) * 4);
                if ((d + v * W) % 16 == 0) prefetch(ahead + (i * w.width + v * W) * 4);
            }
#pragma GCC unroll 4
            for (int step = 0; step < STEPS; step++, p += 4) {
                I codes[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) codes[v] = unsigned_codes<C>(dwords[v], step);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int n = 0; n < DIGITS; n++) {
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) add_products(sums[r][v][n], codes[v], p[r * DECODE_TOKENS + LEFT_OUT + n]);
                    }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            float *o = out + (row + r) * w.width + d + v * W;
            store(o, load(o) * w.carry[row + r] + join_digits<DIGITS>(sums[r][v], LEFT_OUT) * w.unit[row + r]);
        }
}
#endif

// As many vectors at a time as leave registers for what they are made of, then one.
#define BY_VECTORS(sum, WIDE, STEP)                                                       \
    constexpr int wide = R <= 4 ? WIDE : WIDE / 2;                                        \
    int64_t d = 0;                                                                        \
    for (; d + wide * STEP <= w.width; d += wide * STEP) sum<C, R, wide>(w, d, out);      \
    for (; d < w.width; d += STEP) sum<C, R, 1>(w, d, out);

template <int32_t C, int R> static void values_f32(const DecodeWeights &w, float *out) {
#if OPSOCKET_AVX512
    BY_VECTORS(sum_f32, 4, W)
#else
    for (int64_t d = 0; d < w.width; d += 2 * W) sum_f32<C, R, 2>(w, d, out);
#endif
}
#if OPSOCKET_PAIRS
template <int32_t C, int R> static void values_pairs(const DecodeWeights &w, float *out) {
#if OPSOCKET_AVX512
    BY_VECTORS(sum_pairs, 2, W)
#else
    for (int64_t d = 0; d < w.width; d += W) sum_pairs<C, R, 1>(w, d, out);
#endif
}
#endif
#if OPSOCKET_AVX512_BF16
template <int32_t C, int R> static void values_bf16(const DecodeWeights &w, float *out) {
    if constexpr (kv_bits(C) == 8) {
        BY_VECTORS(sum_bf16, 2, 16)
    } else {
        BY_VECTORS(sum_bf16, 4, 16)
    }
}
#endif

#if OPSOCKET_DIGITS
template <int32_t C, int R, int LEFT_OUT> static void values_digits(const DecodeWeights &w, float *out) {
    constexpr int DIGITS = V_DIGITS - LEFT_OUT;
    constexpr int rows = R == 8 || (W < 16 && R * DIGITS > 12) ? R / 2 : R;  // more would take all registers
    constexpr int wide = digits_beside(rows, DIGITS);
    for (int row = 0; row < R; row += rows) {
        int64_t d = 0;
        for (; d + wide * W <= w.width; d += wide * W) sum_digits<C, rows, wide, LEFT_OUT>(w, row, d, out);
        for (; d < w.width; d += W) sum_digits<C, rows, 1, LEFT_OUT>(w, row, d, out);
    }
}
#endif

template <int32_t C, int R> struct Values {
    static constexpr DecodeValues f32 = values_f32<C, R>;
#if OPSOCKET_PAIRS
    static constexpr DecodeValues pairs = values_pairs<C, R>;
#endif
#if OPSOCKET_AVX512_BF16
    static constexpr DecodeValues bf16 = values_bf16<C, R>;
#endif
#if OPSOCKET_DIGITS
    static constexpr DecodeValues digits = values_digits<C, R, 0>, few_digits = values_digits<C, R, 1>;
#endif
};

DecodeValues decode_values(int32_t code, int32_t dot, int rows) {
    return choose_decode<DecodeValues, Values>(code, dot, rows);
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
