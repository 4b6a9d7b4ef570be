// Queries as the dot products want them, and the dot products with keys: 16 keys of a tile in a vector.
#include <algorithm>

#include "attention_decode.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

static int64_t padded(int64_t dim) { return (dim + TILE - 1) / TILE * TILE; }

int64_t decode_query_floats(int64_t dim, int rows) {
#if OPSOCKET_WORDS
    return padded(dim) * rows * 3 / 2 + 8;
#else
    return padded(dim) * rows;
#endif
}

// Units of `size` bytes, [count] of them, to every `rows`-th place. By a size that is known: as a loop over numbers with
// a stride it would become a scatter, which takes a hundred times as long.
template <int SIZE> static void spread(const unsigned char *from, int64_t count, int64_t rows, unsigned char *to) {
    for (int64_t i = 0; i < count; i++) __builtin_memcpy(to + i * rows * SIZE, from + i * SIZE, SIZE);
}

#if OPSOCKET_DIGITS
// Rows as digits, or false where digits would not do: where rounding to them loses more of the sum of a row's elements
// than one rounding to f32. Numbers of bf16 are exact down to 2^-14 of the row's largest.
static bool prepare_digits(DecodeQuery &query, const KVTiles &k, int rows, const float *q, float scale) {
    const int64_t dim = k.dim;
    float moved = 0;  // at most, by the lowest digits of a row, of logits with keys whose scale is 1
    for (int64_t r = 0; r < rows; r++) {
        auto take = [&](int64_t d) { return load_part(q + r * dim, d, F32, int(std::clamp<int64_t>(dim - d, 0, W))); };
        F most = set(0.0f), all = set(0.0f), lost = set(0.0f);
        for (int64_t d = 0; d < dim; d += W) most = max(most, abs(take(d))), all += abs(take(d));
        const float top = largest(most);
        if (!(sum(all) < 0x1p100f && (top == 0 || top > 0x1p-100f))) return false;
        int exponent = 0;
        std::frexp(top, &exponent);
        if (std::ldexp(top, 23 - exponent) > most_in_digits(K_DIGITS)) exponent++;
        const float units = std::ldexp(1.0f, 23 - exponent);
        DigitSums sums;
        I lowest{};
        for (int64_t d = 0; d < padded(dim); d += W) {  // keys have codes beyond the last dim
            const F x = take(d) * units;
            const I digits = digits_of(x), low = round(x) << 24 >> 24;
            lowest += low < 0 ? -low : low;
            lost += abs(x - convert(round(x)));
            sums.add(digits);
            alignas(64) unsigned char numbers[W * 4];
            std::memcpy(numbers, &digits, sizeof digits);
            spread<16>(numbers, W / 4, rows, reinterpret_cast<unsigned char *>(query.packed + (d / 4 * rows + r) * 4));
        }
        if (sum(lost) > sum(all) * units * 0x1p-24f) return false;
        sums.store(k.code, query.first[r]);
        query.scale[r] = scale / units;
        moved = std::max(moved, std::fabs(query.scale[r]) * float(sum(lowest)) * float(1 << offset_bits(k.code)));
    }
    query.coarse_until = 0x1p-10f / moved;
    return true;
}
#endif

#if OPSOCKET_WORDS
// Rows as words, beside what else they are; returns coarse_until. Numbers of bf16 are exact down to 2^-7 of the row's largest.
static float prepare_words(DecodeQuery &query, const KVTiles &k, int rows, const float *q, float scale) {
    const int64_t dim = k.dim, n = padded(dim);
    query.words = reinterpret_cast<int32_t *>(query.values + n * rows);
    float moved = 0;  // at most, by what words lack, of logits with keys whose scale is 1
    for (int64_t r = 0; r < rows; r++) {
        auto take = [&](int64_t d) { return load_part(q + r * dim, d, F32, int(std::clamp<int64_t>(dim - d, 0, W))); };
        F most = set(0.0f);
        for (int64_t d = 0; d < dim; d += W) most = max(most, abs(take(d)));
        const float top = largest(most);
        if (!(top < 0x1p100f && (top == 0 || top > 0x1p-100f))) return -1;
        int exponent = 0;
        std::frexp(top, &exponent);
        if (std::ldexp(top, 15 - exponent) > 32767) exponent++;
        const float units = std::ldexp(1.0f, 15 - exponent);
        F lost = set(0.0f), all = set(0.0f);
        I sums{};
        for (int64_t d = 0; d < n; d += W) {  // keys have codes beyond the last dim
            const F x = take(d) * units;
            const I number = round(x);
            lost += abs(x - convert(number)), all += abs(convert(number)), sums += number;
            const H words = __builtin_convertvector((I)shuffle_fours((F)number), H);
            unsigned char numbers[W * 2];
            std::memcpy(numbers, &words, sizeof words);
            spread<8>(numbers, W / 4, rows, reinterpret_cast<unsigned char *>(query.words + (d / 4 * rows + r) * 2));
        }
        if (sum(all) >= 0x1p24f) return -1;  // sums of products with codes of 8 bits would not fit 32
        query.words_first[r] = k.code == KV_I8 ? 0 : -sum(sums) * (1 << offset_bits(k.code));
        query.words_scale[r] = scale / units;
        moved = std::max(moved, std::fabs(query.words_scale[r]) * sum(lost) * float(1 << offset_bits(k.code)));
    }
    return 0x1p-10f / moved;
}
#endif

void decode_prepare(
    DecodeQuery &query, float *memory, const KVTiles &k, int64_t head, int rows, const float *q, bool bf16, float scale,
    [[maybe_unused]] bool bf16_probabilities
) {
    const int64_t dim = k.dim, n = padded(dim);
    if (k.granularity == SCALE_TENSOR) scale *= k.scale[0];
    else if (k.granularity == SCALE_HEAD) scale *= k.scale[head];
    const float *channels = k.granularity == SCALE_CHANNEL ? k.scale + head * dim : nullptr;
    query.rows = rows;
    query.dot = decode_dot(k.code, bf16 && !channels);
    query.values = memory;
    query.coarse_dot = query.dot;
    query.coarse_until = -1;
#if OPSOCKET_DIGITS
    if (query.dot == DOT_DIGITS) {
        if (prepare_digits(query, k, rows, q, scale)) {
            query.coarse_dot = DOT_FEW_DIGITS;
            if (!bf16_probabilities) query.coarse_until = -1;
            return;
        }
        query.dot = query.coarse_dot = DOT_F32;
    }
#elif OPSOCKET_WORDS
    if (kv_is_integer(k.code) && bf16 && bf16_probabilities && !channels) {
        query.coarse_dot = DOT_WORDS;
        query.coarse_until = prepare_words(query, k, rows, q, scale);
    }
#endif
    std::fill_n(query.scale, rows, query.dot == DOT_F32 ? scale / decoded_unit(k.code) : scale);
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
            if (order == ORDER_SHUFFLED) x = shuffle_fours(x);
            alignas(64) unsigned char numbers[W * 4];
            if (number == 2) store_bf16(numbers, x);
            else store(reinterpret_cast<float *>(numbers), x);
            unsigned char *place = to + (d / together * rows + r) * unit;
            if (unit == 4) spread<4>(numbers, W / together, rows, place);
            else if (unit == 8) spread<8>(numbers, W / together, rows, place);
            else spread<16>(numbers, W / together, rows, place);
        }
}

// Every kernel takes as many vectors of keys at a time as there are registers for their sums: what is broadcast of the
// query serves them all.

// Logits of W tokens, beginning with vector `v` of the chunk, for row r: from sums of products.
inline void put_logits(float scale, const DecodeKeys &keys, int r, int v, F sums, float *s) {
    F logits = sums * scale;
    if (keys.scales_at) {
        const int tile = v * W / TILE, part = v % (TILE / W);
        logits *= load(reinterpret_cast<const float *>(keys.tiles[tile] + keys.scales_at) + part * W);
    }
    store(s + r * DECODE_TOKENS + v * W, logits);
}

// ---- one by one, at every level

#if OPSOCKET_AVX512
constexpr int beside(int rows) { return rows <= 4 ? 4 : 2; }
#else
constexpr int beside(int rows) { return rows <= 2 ? 4 : 2; }
#endif

template <int32_t C, int R> static void scores_f32(const DecodeQuery &query, const DecodeKeys &keys, float *s) {
    constexpr int N = kv_per_dword(C), G = of_group(C), V = beside(R), OF_TILE = TILE / W;
    for (int first = 0; first < DECODE_TILES * OF_TILE; first += V) {
        F sums[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = set(0.0f);
        const float *q = query.values;
        const unsigned char *at[V], *ahead[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const int tile = (first + v) / OF_TILE;
            at[v] = keys.tiles[tile] + (first + v) % OF_TILE * W * 4, ahead[v] = keys.ahead[tile];
        }
        for (int64_t i = 0; i < keys.vectors; i++) {
            U x[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                x[v] = load_as<U>(at[v] + i * 64);
                if ((first + v) % OF_TILE == 0) prefetch(ahead[v] + i * 64);
            }
#pragma GCC unroll 4
            for (int group = 0; group < N / G; group++) {
                U codes[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) codes[v] = group_of<C>(x[v], group);
#pragma GCC unroll 4
                for (int j = group * G; j < group * G + G; j++) {
                    F k[V];
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) k[v] = decode_one<C>(codes[v], j);
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        const F y = set(q[j * R + r]);
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) add_product(sums[r][v], k[v], y);
                    }
                }
            }
            q += N * R;
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) put_logits(query.scale[r], keys, r, first + v, sums[r][v], s);
    }
}

#if OPSOCKET_PAIRS
// Sums of even and odd lanes beside each other take twice the registers.
constexpr int pairs_beside(int rows) {
    if (W < 16) return rows == 1 ? 2 : 1;
    return rows <= 2 ? 4 : rows <= 4 ? 2 : 1;
}

// Numbers of 16 bits and less, widened two at a time; even and odd lanes of a sum are added at its end.
template <int32_t C, int R> static void scores_pairs(const DecodeQuery &query, const DecodeKeys &keys, float *s) {
    constexpr int V = pairs_beside(R), N = kv_per_dword(C), OF_TILE = TILE / W;
    for (int first = 0; first < DECODE_TILES * OF_TILE; first += V) {
        F sums[R][V][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v][0] = sums[r][v][1] = set(0.0f);
        const float *q = query.values;
        [[maybe_unused]] const CodeDecoder<C == KV_F16 ? int32_t(KV_F8E4M3FN) : C> decode;
        for (int64_t i = 0; i < keys.vectors; i++, q += N * R) {
            const unsigned char *x[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const int tile = (first + v) / OF_TILE, part = (first + v) % OF_TILE;
                x[v] = keys.tiles[tile] + i * 64 + part * W * 4;
                if (part == 0) prefetch(keys.ahead[tile] + i * 64);
            }
            [[maybe_unused]] U even[V], odd[V];
            if constexpr (C != KV_F16) {
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) decode(load_as<U>(x[v]), even[v], odd[v]);
            }
#pragma GCC unroll 2
            for (int half = 0; half < N / 2; half++) {
                F a[V], b[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    if constexpr (C == KV_F16) a[v] = load_half(x[v]), b[v] = load_half(x[v] + W * 2);
                    else a[v] = half_of(even[v], half), b[v] = half_of(odd[v], half);
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const F y = broadcast_pair(q + r * N + half * 2);
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) {
                        add_product(sums[r][v][0], a[v], y);
                        add_product(sums[r][v][1], b[v], y);
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                put_logits(query.scale[r], keys, r, first + v, join_pairs<C>(sums[r][v][0], sums[r][v][1]), s);
    }
}
#endif

#if OPSOCKET_AVX512_BF16
template <int32_t C, int R> static void scores_bf16(const DecodeQuery &query, const DecodeKeys &keys, float *s) {
    constexpr int HALVES = kv_bits(C) == 8 ? 2 : 1, STEPS = kv_bits(C) < 8 ? kv_per_dword(C) / 2 : 1;
    constexpr int V = HALVES == 2 ? pairs_beside(R) : beside(R);
    for (int first = 0; first < DECODE_TILES; first += V) {
        __m512 sums[R][V][HALVES];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
#pragma GCC unroll 2
                for (int half = 0; half < HALVES; half++) sums[r][v][half] = _mm512_setzero_ps();
        const int32_t *q = query.packed;
        for (int64_t i = 0; i < keys.vectors; i++) {
            __m512i dwords[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                dwords[v] = _mm512_load_si512(keys.tiles[first + v] + i * 64);
                prefetch(keys.ahead[first + v] + i * 64);
            }
#pragma GCC unroll 8
            for (int step = 0; step < STEPS; step++, q += HALVES * R) {
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
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const __m512i y = HALVES == 1 ? _mm512_set1_epi32(q[r]) : (__m512i)broadcast_pair((const float *)(q + r * 2));
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++)
#pragma GCC unroll 2
                        for (int half = 0; half < HALVES; half++)
                            sums[r][v][half] = _mm512_dpbf16_ps(sums[r][v][half], (__m512bh)x[v][half], (__m512bh)y);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                F all = (F)sums[r][v][0];
                if constexpr (HALVES == 2) all = join_pairs<C>((F)sums[r][v][0], (F)sums[r][v][1]);
                put_logits(query.scale[r], keys, r, first + v, all, s);
            }
    }
}
#endif

#if OPSOCKET_DIGITS
template <int32_t C, int R, int LEFT_OUT> static void scores_digits(const DecodeQuery &query, const DecodeKeys &keys, float *s) {
    constexpr int DIGITS = K_DIGITS - LEFT_OUT, V = digits_beside(R, DIGITS), STEPS = kv_per_dword(C) / 4, OF_TILE = TILE / W;
    for (int first = 0; first < DECODE_TILES * OF_TILE; first += V) {
        I sums[R][V][DIGITS];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
#pragma GCC unroll 3
                for (int n = 0; n < DIGITS; n++) sums[r][v][n] = set(query.first[r][LEFT_OUT + n]);
        const int32_t *q = query.packed;
        for (int64_t i = 0; i < keys.vectors; i++) {
            I dwords[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const int tile = (first + v) / OF_TILE, part = (first + v) % OF_TILE;
                dwords[v] = load_as<I>(keys.tiles[tile] + i * 64 + part * W * 4);
                if (part == 0) prefetch(keys.ahead[tile] + i * 64);
            }
#pragma GCC unroll 4
            for (int step = 0; step < STEPS; step++, q += R * 4) {
                I codes[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) codes[v] = unsigned_codes<C>(dwords[v], step);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 3
                    for (int n = 0; n < DIGITS; n++) {
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) add_products(sums[r][v][n], codes[v], q[r * 4 + LEFT_OUT + n]);
                    }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                put_logits(query.scale[r], keys, r, first + v, join_digits<DIGITS>(sums[r][v], LEFT_OUT), s);
    }
}
#endif

#if OPSOCKET_WORDS
template <int32_t C, int R> static void scores_words(const DecodeQuery &query, const DecodeKeys &keys, float *s) {
    constexpr int V = beside(R), STEPS = kv_per_dword(C) / 4, OF_TILE = TILE / W;
    for (int first = 0; first < DECODE_TILES * OF_TILE; first += V) {
        I sums[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = set(query.words_first[r]);
        const int32_t *q = query.words;
        const unsigned char *at[V], *ahead[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const int tile = (first + v) / OF_TILE;
            at[v] = keys.tiles[tile] + (first + v) % OF_TILE * W * 4, ahead[v] = keys.ahead[tile];
        }
        for (int64_t i = 0; i < keys.vectors; i++) {
            I dwords[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                dwords[v] = load_as<I>(at[v] + i * 64);
                if ((first + v) % OF_TILE == 0) prefetch(ahead[v] + i * 64);
            }
#pragma GCC unroll 4
            for (int step = 0; step < STEPS; step++, q += R * 2) {
                I even[V], odd[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) pairs_of_codes<C>(dwords[v], step, even[v], odd[v]);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) {
                        sums[r][v] = add_pairs(sums[r][v], even[v], set(q[r * 2]));
                        sums[r][v] = add_pairs(sums[r][v], odd[v], set(q[r * 2 + 1]));
                    }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) put_logits(query.words_scale[r], keys, r, first + v, convert(sums[r][v]), s);
    }
}
#endif

template <int32_t C, int R> struct Scores {
    static constexpr DecodeScores f32 = scores_f32<C, R>;
#if OPSOCKET_PAIRS
    static constexpr DecodeScores pairs = scores_pairs<C, R>;
#endif
#if OPSOCKET_AVX512_BF16
    static constexpr DecodeScores bf16 = scores_bf16<C, R>;
#endif
#if OPSOCKET_DIGITS
    static constexpr DecodeScores digits = scores_digits<C, R, 0>, few_digits = scores_digits<C, R, 1>;
#endif
#if OPSOCKET_WORDS
    static constexpr DecodeScores words = scores_words<C, R>;
#endif
};

DecodeScores decode_scores(int32_t code, int32_t dot, int rows) {
    return choose_decode<DecodeScores, Scores>(code, dot, rows);
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
