// Queries as the dot products want them, and the dot products with keys: 16 keys of a tile in a vector.
#include <algorithm>

#include "attention_decode.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

static int64_t padded(int64_t dim) { return (dim + TILE - 1) / TILE * TILE; }

int64_t decode_query_floats(int64_t dim, int rows) { return (padded(dim) * rows + 15) / 16 * 16; }

// Units of `size` bytes, [count] of them, to every `rows`-th place. By a size that is known: as a loop over numbers with
// a stride it would become a scatter, which takes a hundred times as long.
template <int SIZE> static void spread(const unsigned char *from, int64_t count, int64_t rows, unsigned char *to) {
    for (int64_t i = 0; i < count; i++) __builtin_memcpy(to + i * rows * SIZE, from + i * SIZE, SIZE);
}

void decode_prepare(
    DecodeQuery &query, float *memory, const KVTiles &k, int64_t head, int rows, const float *q, bool bf16, float scale
) {
    const int64_t dim = k.dim, n = padded(dim);
    if (k.granularity == SCALE_TENSOR) scale *= k.scale[0];
    else if (k.granularity == SCALE_HEAD) scale *= k.scale[head];
    const float *channels = k.granularity == SCALE_CHANNEL ? k.scale + head * dim : nullptr;
    query.rows = rows;
    query.dot = decode_dot(k.code, bf16 && !channels);
    query.scale = scale;
    query.values = memory;
    const DecodeOrder order = decode_order(k.code, query.dot);
    const int together = order == ORDER_SINGLE ? 1 : kv_bits(k.code) == 8 ? 4 : 2;  // that stand beside each other
    const int number = query.dot == DOT_BF16 ? 2 : 4, unit = together * number;      // bytes
    unsigned char *to = reinterpret_cast<unsigned char *>(memory);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < n; d += W) {
            const int here = int(std::clamp<int64_t>(dim - d, 0, W));
            auto take = [&](const float *x) { return here == W ? load(x) : load_part(x, 0, F32, here); };
            F x = take(q + r * dim + d);
            if (channels) x = x * take(channels + d);
#if OPSOCKET_AVX512
            if (order == ORDER_SHUFFLED) x = (F)_mm512_permute_ps((__m512)x, SHUFFLED);
#endif
            alignas(64) unsigned char numbers[W * 4];
            if (number == 2) store_bf16(numbers, x);
            else store(reinterpret_cast<float *>(numbers), x);
            unsigned char *place = to + (d / together * rows + r) * unit;
            if (unit == 4) spread<4>(numbers, W / together, rows, place);
            else if (unit == 8) spread<8>(numbers, W / together, rows, place);
            else spread<16>(numbers, W / together, rows, place);
        }
}

// ---- one by one, at every level

template <int32_t C, int R> static void scores_f32(
    const DecodeQuery &query, const unsigned char *tile, const unsigned char *ahead, int64_t vectors, float *s
) {
    constexpr int N = kv_per_dword(C);
    for (int part = 0; part < TILE; part += W) {
        F sums[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = set(0.0f);
        const float *q = query.values;
        for (int64_t i = 0; i < vectors; i++) {
            U x = load_as<U>(tile + i * 64 + part * 4);
            prefetch(ahead + i * 64 + part * 4);
#pragma GCC unroll 16
            for (int j = 0; j < N; j++) {
                F k = decode_one<C>(x, j);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) sums[r][j & 1] += k * set(q[j * R + r]);
            }
            q += N * R;
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) store(s + r * DECODE_TOKENS + part, (sums[r][0] + sums[r][1]) * query.scale);
    }
}

#if OPSOCKET_AVX512
// Numbers of 16 bits and less, widened two at a time; even and odd lanes of a sum are added at its end.
template <int32_t C, int R> static void scores_pairs(
    const DecodeQuery &query, const unsigned char *tile, const unsigned char *ahead, int64_t vectors, float *s
) {
    __m512 sums[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    const float *q = query.values;
    if constexpr (C == KV_F16) {
        for (int64_t i = 0; i < vectors; i++) {
            __m512 a = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(tile + i * 64)));
            __m512 b = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(tile + i * 64 + 32)));
            prefetch(ahead + i * 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                __m512 x = broadcast_pair(q + r * 2);
                sums[r][0] = _mm512_fmadd_ps(a, x, sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(b, x, sums[r][1]);
            }
            q += 2 * R;
        }
    } else {
        const CodeDecoder<C> decoder;
        const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
        for (int64_t i = 0; i < vectors; i++) {
            __m512i x = _mm512_load_si512(tile + i * 64);
            prefetch(ahead + i * 64);
            __m512i a, b;
            decoder(x, a, b);
            __m512 a0 = (__m512)_mm512_slli_epi32(a, 16), a1 = (__m512)_mm512_and_si512(a, upper);
            __m512 b0 = (__m512)_mm512_slli_epi32(b, 16), b1 = (__m512)_mm512_and_si512(b, upper);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                __m512 y0 = broadcast_pair(q + r * 4), y1 = broadcast_pair(q + r * 4 + 2);
                sums[r][0] = _mm512_fmadd_ps(a0, y0, sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(b0, y0, sums[r][1]);
                sums[r][0] = _mm512_fmadd_ps(a1, y1, sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(b1, y1, sums[r][1]);
            }
            q += 4 * R;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        store(s + r * DECODE_TOKENS, (F)join_pairs<C>(sums[r][0], sums[r][1]) * query.scale);
}
#endif

#if OPSOCKET_AVX512_BF16
template <int32_t C, int R> static void scores_bf16(
    const DecodeQuery &query, const unsigned char *tile, const unsigned char *ahead, int64_t vectors, float *s
) {
    __m512 sums[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    const int32_t *q = query.packed;
    if constexpr (C == KV_BF16) {
        int64_t i = 0;
        for (; i + 2 <= vectors; i += 2) {
            __m512bh a = (__m512bh)_mm512_load_si512(tile + i * 64);
            __m512bh b = (__m512bh)_mm512_load_si512(tile + i * 64 + 64);
            prefetch(ahead + i * 64);
            prefetch(ahead + i * 64 + 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], a, (__m512bh)_mm512_set1_epi32(q[r]));
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], b, (__m512bh)_mm512_set1_epi32(q[R + r]));
            }
            q += 2 * R;
        }
        for (; i < vectors; i++, q += R)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                sums[r][0] = _mm512_dpbf16_ps(
                    sums[r][0], (__m512bh)_mm512_load_si512(tile + i * 64), (__m512bh)_mm512_set1_epi32(q[r])
                );
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            store(s + r * DECODE_TOKENS, (F)_mm512_add_ps(sums[r][0], sums[r][1]) * query.scale);
    } else if constexpr (kv_bits(C) < 8) {
        constexpr int STEPS = kv_per_dword(C) / 2;
        for (int64_t i = 0; i < vectors; i++, q += STEPS * R) {
            __m512i x = _mm512_load_si512(tile + i * 64);
            prefetch(ahead + i * 64);
#pragma GCC unroll 8
            for (int step = 0; step < STEPS; step++) {
                __m512bh k = (__m512bh)decode_words<C>(x, step);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
                    sums[r][step & 1] =
                        _mm512_dpbf16_ps(sums[r][step & 1], k, (__m512bh)_mm512_set1_epi32(q[step * R + r]));
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            store(s + r * DECODE_TOKENS, (F)_mm512_add_ps(sums[r][0], sums[r][1]) * query.scale);
    } else {
        const CodeDecoder<C> decoder;
        for (int64_t i = 0; i < vectors; i++, q += 2 * R) {
            __m512i x = _mm512_load_si512(tile + i * 64);
            prefetch(ahead + i * 64);
            __m512i a, b;
            decoder(x, a, b);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                __m512bh y = (__m512bh)broadcast_pair((const float *)(q + r * 2));
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], (__m512bh)a, y);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], (__m512bh)b, y);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            store(s + r * DECODE_TOKENS, (F)join_pairs<C>(sums[r][0], sums[r][1]) * query.scale);
    }
}
#endif

template <int32_t C, int R> struct Scores {
    static constexpr DecodeScores f32 = scores_f32<C, R>;
#if OPSOCKET_AVX512
    static constexpr DecodeScores pairs = scores_pairs<C, R>;
#endif
#if OPSOCKET_AVX512_BF16
    static constexpr DecodeScores bf16 = scores_bf16<C, R>;
#endif
};

DecodeScores decode_scores(int32_t code, int32_t dot, int rows) {
    return choose_decode<DecodeScores, Scores>(code, dot, rows);
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
