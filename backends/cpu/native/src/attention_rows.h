// Rows of attention: one query head of one query each, what it sees, and the state of its softmax over the keys so far.
#pragma once
#include <algorithm>
#include <climits>

#include "commands_attention.h"
#include "functions.h"
#include "tiles.h"

namespace opsocket {

// What row r knows: it sees keys [low, high), and of new tokens only those whose bit is set in `tree`.
struct Row {
    int32_t low, high;
    int32_t history;     // keys below are no new tokens
    float slope;         // ALiBi: of the logit per position of distance
    int64_t position;    // of the query, less that of key 0
    const unsigned char *tree;  // null: no bits to look at
    int64_t bit;         // of key `history` in it
};

namespace OPSOCKET_LEVEL {

// A number as a type.
template <int N> struct Count {
    static constexpr int value = N;
};

constexpr int KEYS = 64;  // of a tile of scores

inline F iota() {
    F v;
    for (int i = 0; i < W; i++) v[i] = float(i);
    return v;
}
inline I lanes() { return __builtin_convertvector(iota(), I); }

// Lane r: what `join` makes of all lanes of x[r], R of them. Other lanes hold anything.
template <int R, class Join> inline F across(const F *x, Join join) {
    static_assert(R <= W);
#if OPSOCKET_AVX512
    auto four = [&](const F *row, int rows) {
        auto pair = [&](const F &a, const F &b) {
            return join((F)_mm512_unpacklo_ps((__m512)a, (__m512)b), (F)_mm512_unpackhi_ps((__m512)a, (__m512)b));
        };
        const F ab = pair(row[0], row[rows > 1 ? 1 : 0]), cd = rows > 2 ? pair(row[2], row[rows > 3 ? 3 : 2]) : ab;
        __m512d low = _mm512_unpacklo_pd((__m512d)ab, (__m512d)cd), high = _mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
        F all = join((F)low, (F)high);
        all = join(all, (F)_mm512_shuffle_f32x4((__m512)all, (__m512)all, 0x4e));
        return join(all, (F)_mm512_shuffle_f32x4((__m512)all, (__m512)all, 0xb1));
    };
    if constexpr (R <= 4) return four(x, R);
    else return (F)_mm512_mask_blend_ps(0xf0, (__m512)four(x, 4), (__m512)four(x + 4, R - 4));
#elif OPSOCKET_AVX2
    auto four = [&](const F *row, int rows) {
        auto pair = [&](const F &a, const F &b) {
            return join((F)_mm256_unpacklo_ps((__m256)a, (__m256)b), (F)_mm256_unpackhi_ps((__m256)a, (__m256)b));
        };
        const F ab = pair(row[0], row[rows > 1 ? 1 : 0]), cd = rows > 2 ? pair(row[2], row[rows > 3 ? 3 : 2]) : ab;
        __m256d low = _mm256_unpacklo_pd((__m256d)ab, (__m256d)cd), high = _mm256_unpackhi_pd((__m256d)ab, (__m256d)cd);
        const F all = join((F)low, (F)high);
        return join(all, (F)_mm256_permute2f128_ps((__m256)all, (__m256)all, 1));
    };
    if constexpr (R <= 4) return four(x, R);
    else return (F)_mm256_blend_ps((__m256)four(x, 4), (__m256)four(x + 4, R - 4), 0xf0);
#else
    F all = x[0];
    for (int r = 0; r < R; r++) {
        float one = x[r][0];
        for (int i = 1; i < W; i++) one = join(set(one), set(x[r][i]))[0];
        all[r] = one;
    }
    return all;
#endif
}

// As bf16. What the instruction takes for zeros, below 2^-126, is nothing beside the largest, which is 1 at least.
inline void store_probabilities(void *to, F p) {
#if OPSOCKET_AVX512_BF16
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)p));
#else
    store_bf16(to, p);
#endif
}
// The same of two vectors.
inline void store_probabilities(void *to, F p, F next) {
#if OPSOCKET_AVX512_BF16
    _mm512_storeu_si512((__m512i *)to, (__m512i)_mm512_cvtne2ps_pbh((__m512)next, (__m512)p));
#else
    store_bf16(to, p);
    store_bf16(static_cast<uint16_t *>(to) + W, next);
#endif
}

// Whether a row sees a key, and every one of [key, key + count).
inline bool sees(const Row &row, int64_t key) {
    if (key < row.low || key >= row.high) return false;
    if (!row.tree || key < row.history) return true;
    int64_t bit = row.bit + key - row.history;
    return row.tree[bit >> 3] >> (bit & 7) & 1;
}
inline bool sees_all(const Row &row, int64_t key, int64_t count) {
    return row.low <= key && key + count <= row.high && (!row.tree || key + count <= row.history);
}

// Rows that share a KV head. state: acc is the sum of exp(logit - top) * v, total that of exp(logit - top); both are 0
// and top is -inf before the first key.
struct Rows {
    int64_t count;
    const Row *row;
    const void *q;  // [count, q_width]: f32, or where scores are made of bf16 pairs, bf16; zeros beyond dim_qk
    int64_t q_width;
    float *acc;  // [count, v_width(dim_vo)]
    float *top, *total;
};

// Keys that query i of a sequence sees, and the positions that they follow from.
inline Row make_row(const Attention &c, int64_t sequence, int64_t i) {
    const AttentionBatch &b = *c.batch;
    Row row{};
    int64_t first = b.q_indptr[sequence], kv_len = b.kv_lens[sequence];
    row.position = b.q_positions ? b.q_positions[first + i]
                   : b.q_start   ? b.q_start[sequence] + i
                                 : kv_len - (b.q_indptr[sequence + 1] - first) + i;
    int64_t low = 0, high = kv_len;
    if (c.window_left != INT64_MAX) low = std::max(low, row.position - c.window_left);
    if (c.window_right != INT64_MAX) high = std::min(high, row.position + c.window_right + 1);
    row.low = int32_t(std::min(low, kv_len));
    row.high = int32_t(std::max(high, int64_t(row.low)));
    if (c.mask == MASK_TREE) {
        int64_t q_len = b.q_indptr[sequence + 1] - first;
        row.history = int32_t(kv_len - q_len);
        row.tree = c.tree + b.mask_indptr[sequence];
        row.bit = i * q_len;
    }
    return row;
}

inline int64_t out_width(const Attention &c) { return v_width(c.dim_vo); }

// One row's result from its state: the sink joins, the sum is divided by the total, and it is rounded once.
inline void finish_row(const Attention &c, int64_t token, int64_t head, const float *acc, float top, float total) {
    float factor = total > 0 || total != total ? 1 / total : 0, lse = -INFINITY;
    float sink = c.sinks ? c.sinks[head] : -INFINITY;
    if (sink != -INFINITY) {
        float both = std::max(top, sink), kept = top == -INFINITY ? 0 : std::exp(top - both);
        float all = total * kept + std::exp(sink - both);
        factor = kept / all;
        if (c.lse) lse = both + std::log(all);
    } else if (c.lse && factor != 0) {
        lse = top + std::log(total);
    }
    int64_t base = token * c.out_stride + head * c.dim_vo, d = 0;
    for (; d + W <= c.dim_vo; d += W) {
        F x = factor == 0 ? set(0.0f) : load(acc + d) * factor;
        store_any(c.out, base + d, c.out_dtype, x);
    }
    for (; d < c.dim_vo; d++) store_one(c.out, base + d, c.out_dtype, factor == 0 ? 0 : acc[d] * factor);
    if (c.lse) c.lse[token * c.lse_stride + head] = lse;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
