// Attention of some rows over tiles of keys: scores = q K^T, online softmax (Milakov and Gimelshein 2018), acc += p V.
// Products in f32, or of bf16 pairs with f32 sums (dpbf16) where both factors are bf16: q and K by their types, which
// is exact, p and V by `numerics.probabilities`.
#pragma once
#include "attention_keys.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

#if OPSOCKET_AVX512
constexpr int BROAD = 4;  // vectors beside each other in a product: 6 rows by 4 vectors of sums
#else
constexpr int BROAD = 2;  // 16 registers
#endif
constexpr int BLOCK = 6;  // rows of a product

template <class Fn> inline void with_count(int64_t n, const Fn &f) {
    switch (n) {
        case 1: return f(Count<1>());
        case 2: return f(Count<2>());
        case 3: return f(Count<3>());
        case 4: return f(Count<4>());
        case 5: return f(Count<5>());
        default: return f(Count<6>());
    }
}

#if OPSOCKET_AVX512_BF16
inline F dot_bf16(F sum, U a, U b) { return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
#else
inline F dot_bf16(F sum, U a, U b) {
    sum += (F)(a << 16) * (F)(b << 16);
    return sum + (F)(a & 0xffff0000u) * (F)(b & 0xffff0000u);
}
#endif

// sums[r][j] (+)= a[r][i] * b[i][j], R rows, V vectors of columns, i below `depth`; a and b hold f32, or bf16 pairs.
// factor: what the sums are multiplied by first; null: they start at 0.
template <int R, int V, bool PAIRS>
inline void product(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride, int64_t depth,
                    float *sums, int64_t stride, const float *factor) {
    F s[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) s[r][v] = factor ? load(sums + r * stride + v * W) * factor[r] : set(0.0f);
#pragma GCC unroll 2
    for (int64_t i = 0; i < depth; i++) {
        U y[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) y[v] = load_as<U>(b + i * b_stride + v * W);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            U x = U{} + a[r * a_stride + i];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                if constexpr (PAIRS) s[r][v] = dot_bf16(s[r][v], y[v], x);
                else s[r][v] = s[r][v] + (F)x * (F)y[v];
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(sums + r * stride + v * W, s[r][v]);
}

// The same for any width that is a multiple of W.
template <int R, bool PAIRS>
inline void products(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride, int64_t depth,
                     float *sums, int64_t stride, int64_t width, const float *factor) {
    int64_t j = 0;
    for (; j + BROAD * W <= width; j += BROAD * W)
        product<R, BROAD, PAIRS>(a, a_stride, b + j, b_stride, depth, sums + j, stride, factor);
    for (; j < width; j += W) product<R, 1, PAIRS>(a, a_stride, b + j, b_stride, depth, sums + j, stride, factor);
}

// Raw products of one row with keys [key, key + count) become logits, hidden ones -inf; their largest.
inline float logits(const Attention &c, const Row &row, int64_t key, int count, float *s) {
    F top = set(-INFINITY);
    bool whole = sees_all(row, key, count) && count % W == 0;
    for (int j = 0; j < count; j += W) {
        F x = load(s + j) * c.scale;
        if (c.softcap != 0) x = tanh(x / c.softcap) * c.softcap;
        I index = lanes() + int32_t(key + j);
        if (c.slopes) x = x - abs(convert(index - int32_t(row.position))) * row.slope;
        if (!whole) {
            x = ((index >= row.low) & (index < row.high)) ? x : set(-INFINITY);
            if (row.tree && key + j + W > row.history)
                for (int i = 0; i < W; i++)
                    if (!sees(row, key + j + i)) x[i] = -INFINITY;
        }
        top = max(x, top);
        store(s + j, x);
    }
    return largest(top);
}

// Logits become exp(logit - top) for the largest of them and all before, as f32 or as bf16 pairs; what the state of the
// row has to be multiplied by.
inline float exponentials(float *s, int count, int padded, bool pairs, float most, float &top, float &total) {
    float now = std::max(top, most);
    if (most != most) now = most;
    float base = now == -INFINITY ? 0 : now;
    F sum = set(0.0f);
    for (int j = 0; j < count; j += W) {
        F p = exp(load(s + j) - base);
        sum += p;
        if (pairs) store_bf16(reinterpret_cast<uint16_t *>(s) + j, p);
        else store(s + j, p);
    }
    int done = (count + W - 1) / W * W;
    if (pairs) std::memset(reinterpret_cast<uint16_t *>(s) + done, 0, size_t(padded - done) * 2);
    else std::memset(s + done, 0, size_t(padded - done) * 4);
    float factor = top == -INFINITY ? 0 : std::exp(top - base);
    total = total * factor + opsocket::OPSOCKET_LEVEL::sum(sum);
    top = now;
    return factor;
}

// Whether any of `count` dwords of values, f32 or bf16 pairs, is infinite or NaN.
inline bool has_broken(const uint32_t *values, int64_t count, bool pairs) {
    I broken = set(int32_t(0));
    for (int64_t i = 0; i < count; i += W) {
        U x = load_as<U>(values + i);
        broken |= (I)((x & 0x7f800000u) == 0x7f800000u);
        if (pairs) broken |= (I)((x & 0x7f80u) == 0x7f80u);
    }
    return sum(broken) != 0;
}

// acc of one row, as `product` has it, where some values are infinite or NaN: they must not reach a row that does not
// see their key, as 0 * NaN.
inline void add_seen_values(const Row &row, int64_t key, int count, const float *p, const uint32_t *values,
                            int64_t width, bool pairs, float factor, float *acc) {
    for (int64_t d = 0; d < width; d += W) store(acc + d, load(acc + d) * factor);
    for (int t = 0; t < count; t++) {
        if (!sees(row, key + t)) continue;
        float weight = pairs ? bf16_to_float(reinterpret_cast<const uint16_t *>(p)[t]) : p[t];
        for (int64_t d = 0; d < width; d += W) {
            U x = load_as<U>(values + (pairs ? t / 2 : t) * width + d);
            if (pairs) x = t % 2 ? x & 0xffff0000u : x << 16;
            store(acc + d, load(acc + d) + (F)x * weight);
        }
    }
}

// Which of the products are of bf16 pairs.
struct Stages {
    bool scores, values;
};

inline Stages stages(const Attention &c) {
#if OPSOCKET_AVX512_BF16
    bool cached = c.cache.k.data;
    bool k = cached ? c.cache.k.code == KV_BF16 : c.kv_dtype == BF16;
    bool v = cached ? c.cache.v.code == KV_BF16 : c.kv_dtype == BF16;
    return {c.q_dtype == BF16 && k, c.bf16_probabilities && v};
#else
    (void)c;
    return {false, false};
#endif
}

// Elements of a row of q: of whole dwords.
inline int64_t q_width(const Attention &c, Stages stage) { return stage.scores ? (c.dim_qk + 1) / 2 * 2 : c.dim_qk; }

// Bytes of scratch of `attend_tiles`.
inline int64_t tile_scratch(const Attention &c) {
    return ((c.dim_qk + 1) * KEYS + KEYS * out_width(c) + BLOCK * KEYS) * 4;
}

// Row `row` of q for `attend_tiles`.
inline void take_q(const Attention &c, Stages stage, int64_t token, int64_t head, void *to) {
    int64_t from = token * c.q_stride + head * c.dim_qk, d = 0;
    if (stage.scores) {
        uint16_t *pairs = static_cast<uint16_t *>(to);
        std::memcpy(pairs, static_cast<const uint16_t *>(c.q) + from, size_t(c.dim_qk) * 2);
        if (c.dim_qk % 2) pairs[c.dim_qk] = 0;
        return;
    }
    float *x = static_cast<float *>(to);
    for (; d + W <= c.dim_qk; d += W) store(x + d, load_any(c.q, from + d, c.q_dtype));
    for (; d < c.dim_qk; d++) x[d] = load_one(c.q, from + d, c.q_dtype);
}

// The state of rows after keys [first, last): first a multiple of 16. scratch: of tile_scratch bytes, 64-byte aligned.
inline void attend_tiles(const KeySource &source, const Rows &rows, int64_t first, int64_t last, Stages stage,
                         unsigned char *scratch) {
    const Attention &c = source.c;
    int64_t width = out_width(c), depth = stage.scores ? (c.dim_qk + 1) / 2 : c.dim_qk;
    uint32_t *keys = reinterpret_cast<uint32_t *>(scratch), *values = keys + (c.dim_qk + 1) * KEYS;
    float *scores = reinterpret_cast<float *>(values + KEYS * width);
    const uint32_t *q = static_cast<const uint32_t *>(rows.q);
    int64_t q_stride = stage.scores ? rows.q_width / 2 : rows.q_width;
    for (int64_t key = first; key < last; key += KEYS) {
        int count = int(std::min<int64_t>(KEYS, last - key)), padded = (count + TILE - 1) / TILE * TILE;
        if (stage.scores) pair_keys(source, key, count, keys);
        else widen_keys(source, key, count, reinterpret_cast<float *>(keys));
        if (stage.values) pair_values(source, key, count, values);
        else widen_values(source, key, count, reinterpret_cast<float *>(values));
        int looked = -1;  // whether a value is infinite or NaN, once it matters
        for (int64_t r = 0; r < rows.count; r += BLOCK) {
            int64_t n = std::min<int64_t>(BLOCK, rows.count - r);
            int32_t low = INT32_MAX, high = 0;
            bool all = true;
            for (int64_t i = r; i < r + n; i++) {
                low = std::min(low, rows.row[i].low);
                high = std::max(high, rows.row[i].high);
                all = all && sees_all(rows.row[i], key, count);
            }
            if (high <= key || low >= key + count) continue;
            if (!all && looked < 0) looked = has_broken(values, (stage.values ? KEYS / 2 : KEYS) * width, stage.values);
            float *s = scores;
            with_count(n, [&](auto count_of) {
                constexpr int R = decltype(count_of)::value;
                if (stage.scores) products<R, true>(q + r * q_stride, q_stride, keys, KEYS, depth, s, KEYS, padded, nullptr);
                else products<R, false>(q + r * q_stride, q_stride, keys, KEYS, depth, s, KEYS, padded, nullptr);
                float factor[R];
                for (int i = 0; i < R; i++) {
                    float most = logits(c, rows.row[r + i], key, count, s + i * KEYS);
                    factor[i] = exponentials(s + i * KEYS, count, padded, stage.values, most, rows.top[r + i], rows.total[r + i]);
                }
                const uint32_t *p = reinterpret_cast<const uint32_t *>(s);
                float *acc = rows.acc + r * width;
                if (!all && looked)
                    for (int i = 0; i < R; i++)
                        add_seen_values(rows.row[r + i], key, count, s + i * KEYS, values, width, stage.values, factor[i],
                                        acc + i * width);
                else if (stage.values) products<R, true>(p, KEYS, values, width, padded / 2, acc, width, width, factor);
                else products<R, false>(p, KEYS, values, width, padded, acc, width, width, factor);
            });
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
