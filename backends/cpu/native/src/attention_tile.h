// Attention of some rows over tiles of keys: scores = q K^T, online softmax (Milakov and Gimelshein 2018), acc += p V.
// Products in f32, or of bf16 pairs with f32 sums (dpbf16) where both factors are bf16: q and K by their types, which
// is exact, p and V by `numerics.probabilities`. Where only K or V is bf16, it is widened on the way.
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

// What the dwords of the two factors are: both f32; both pairs of bf16; two f32 for each pair.
enum Product : int32_t { PRODUCT_F32, PRODUCT_BF16, PRODUCT_MIXED };

// f(Count<product>())
template <class Fn> inline void with_product(Product product, const Fn &f) {
    switch (product) {
#if OPSOCKET_AVX512_BF16
        case PRODUCT_BF16: return f(Count<PRODUCT_BF16>());
#endif
#if OPSOCKET_AVX512
        case PRODUCT_MIXED: return f(Count<PRODUCT_MIXED>());
#endif
        default: return f(Count<PRODUCT_F32>());
    }
}

template <int P> inline F add_product(F sum, U a, U b) {
#if OPSOCKET_AVX512_BF16
    if constexpr (P == PRODUCT_BF16) return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)b, (__m512bh)a);
    else
#endif
        return sum + (F)a * (F)b;
}

// sums[r][v] += a[r] * b[v], of one dword of b in each lane; a: of row r at r * stride.
template <int P, int R, int V>
inline void add_products(F (&sums)[R][V], const uint32_t *a, int64_t stride, const U (&b)[V]) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        const U x = U{} + a[r * stride];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = add_product<P>(sums[r][v], x, b[v]);
    }
}

// The same of pairs b(v) that are widened, and of two f32 for each. Their halves are a loop that stays one: both at once
// would not leave enough registers.
template <int R, int V, class Vectors>
inline void add_pairs(F (&sums)[R][V], const uint32_t *a, int64_t stride, const Vectors &b) {
#pragma GCC unroll 1
    for (int half = 0; half < 2; half++) {
        U y[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) y[v] = b(v) << (16 - 16 * half) & 0xffff0000u;
        add_products<PRODUCT_F32>(sums, a + half, stride, y);
    }
}

// s[r][j] = the products of q[r] with keys j of W * V from vector `first` on; depth: dwords of a key.
template <int P, int R, int V>
inline void score(const uint32_t *q, int64_t stride, const uint32_t *const *tiles, int64_t first, int64_t depth,
                  float *s) {
    const uint32_t *k[V];
    F sums[R][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        k[v] = tiles[(first + v) * W / TILE] + (first + v) * W % TILE;
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) sums[r][v] = set(0.0f);
    }
#pragma GCC unroll 2
    for (int64_t i = 0; i < depth; i++) {
        if constexpr (P == PRODUCT_MIXED) {
            add_pairs(sums, q + i * 2, stride, [&](int v) { return load_as<U>(k[v] + i * TILE); });
        } else {
            U b[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) b[v] = load_as<U>(k[v] + i * TILE);
            add_products<P>(sums, q + i, stride, b);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(s + r * KEYS + (first + v) * W, sums[r][v]);
}

// acc[r][j] = acc[r][j] * factor[r] + p[r] * V, for dims [d, d + W * V); p: [R][KEYS], or as pairs in the first half.
template <int P, int R, int V>
inline void add_values(const float *p, const uint32_t *const *tiles, int count, int64_t width, int64_t d,
                       const float *factor, float *acc) {
    constexpr int ROWS = P == PRODUCT_F32 ? TILE : TILE / 2;
    const uint32_t *a = reinterpret_cast<const uint32_t *>(p);
    F sums[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = load(acc + r * width + d + v * W) * factor[r];
    for (int t = 0; t < count; t++) {
        const uint32_t *tile = tiles[t] + d;
#pragma GCC unroll 2
        for (int i = 0; i < ROWS; i++) {
            if constexpr (P == PRODUCT_MIXED) {
                add_pairs(sums, a + i * 2, KEYS, [&](int v) { return load_as<U>(tile + i * width + v * W); });
            } else {
                U b[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) b[v] = load_as<U>(tile + i * width + v * W);
                add_products<P>(sums, a + i, KEYS, b);
            }
        }
        a += P == PRODUCT_BF16 ? TILE / 2 : TILE;
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(acc + r * width + d + v * W, sums[r][v]);
}

// f(i, Count<vectors>()) for `count` vectors, as many beside each other as there are registers for.
template <class Fn> inline void by_vectors(int64_t count, const Fn &f) {
    int64_t i = 0;
    for (; i + BROAD <= count; i += BROAD) f(i, Count<BROAD>());
    if constexpr (BROAD > 2)
        for (; i + 2 <= count; i += 2) f(i, Count<2>());
    for (; i < count; i++) f(i, Count<1>());
}

// Raw products of one row with keys [key, key + count) become logits, hidden ones -inf.
inline void make_logits(const Attention &c, const Row &row, int64_t key, int count, float *s) {
    const bool whole = sees_all(row, key, count);
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
        store(s + j, x);
    }
}

// A step of the online softmax for R rows: raw products s[R][KEYS] with keys [key, key + count) become exp(logit - top)
// for the largest of them and all before, as f32, or as bf16 in the first half of a row. factor: what the rows' older
// sums have to be multiplied by. all: whether every row sees every key. WHOLE: count is KEYS.
template <int R, bool WHOLE>
inline void soften_rows(const Attention &c, const Row *row, int64_t key, int some, bool all, bool bf16, float *s,
                        float *tops, float *totals, float *factor) {
    const int count = WHOLE ? KEYS : some;
    // A scale that is not negative can wait until the largest product is known.
    const bool raw = all && c.softcap == 0 && !c.slopes && c.scale > 0;
    const float scale = raw ? c.scale : 1.0f;
    F most[R], sums[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        if (!raw) make_logits(c, row[r], key, count, s + r * KEYS);
        most[r] = load(s + r * KEYS);
        for (int j = W; j < count; j += W) most[r] = max(load(s + r * KEYS + j), most[r]);
    }
    const F old = load_part(tops, 0, F32, R), top = max(across<R>(most, [](F a, F b) { return max(a, b); }) * scale, old);
    const F carry = exp(old == top ? set(0.0f) : old - top);
    alignas(64) float base[W], carried[W];
    store(base, top == -INFINITY ? set(0.0f) : top * LOG2_E);
    store(carried, carry);
    const F by = set(scale * LOG2_E);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        const F from = set(base[r]);
        sums[r] = set(0.0f);
        factor[r] = carried[r];
        for (int j = 0; j < count; j += W) {
            const F p = exp2(load(s + r * KEYS + j) * by - from);
            sums[r] += p;
            if (bf16) store_probabilities(reinterpret_cast<uint16_t *>(s + r * KEYS) + j, p);
            else store(s + r * KEYS + j, p);
        }
    }
    store_part(tops, 0, F32, top, R);
    const F total = load_part(totals, 0, F32, R) * carry + across<R>(sums, [](F a, F b) { return a + b; });
    store_part(totals, 0, F32, total, R);
}

// The same, by as many rows as a vector has lanes.
template <int R, bool WHOLE>
inline void soften(const Attention &c, const Row *row, int64_t key, int some, bool all, bool bf16, float *s, float *tops,
                   float *totals, float *factor) {
    constexpr int HERE = std::min(R, W);
    soften_rows<HERE, WHOLE>(c, row, key, some, all, bf16, s, tops, totals, factor);
    if constexpr (R > HERE)
        soften<R - HERE, WHOLE>(c, row + HERE, key, some, all, bf16, s + HERE * KEYS, tops + HERE, totals + HERE,
                                factor + HERE);
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

// acc of one row, as `add_values` has it, where some values are infinite or NaN: they must not reach a row that does not
// see their key, as 0 * NaN.
inline void add_seen_values(const Row &row, int64_t key, int count, const float *p, const uint32_t *const *tiles,
                            int64_t width, Product product, float factor, float *acc) {
    const bool pairs = product != PRODUCT_F32;
    for (int64_t d = 0; d < width; d += W) store(acc + d, load(acc + d) * factor);
    for (int t = 0; t < count; t++) {
        if (!sees(row, key + t)) continue;
        float weight = product == PRODUCT_BF16 ? bf16_to_float(reinterpret_cast<const uint16_t *>(p)[t]) : p[t];
        const uint32_t *values = tiles[t / TILE] + (pairs ? t % TILE / 2 : t % TILE) * width;
        for (int64_t d = 0; d < width; d += W) {
            U x = load_as<U>(values + d);
            if (pairs) x = t % 2 ? x & 0xffff0000u : x << 16;
            store(acc + d, load(acc + d) + (F)x * weight);
        }
    }
}

struct Stages {
    Product scores, values;
};

inline Stages stages(const Attention &c) {
    const bool cached = c.cache.k.data;
    const bool k = cached ? c.cache.k.code == KV_BF16 : c.kv_dtype == BF16;
    const bool v = cached ? c.cache.v.code == KV_BF16 : c.kv_dtype == BF16;
    bool scores = false, values = false;
#if OPSOCKET_AVX512_BF16
    scores = c.q_dtype == BF16, values = c.bf16_probabilities;
#endif
#if OPSOCKET_AVX512
    constexpr Product WIDENED = PRODUCT_MIXED;
#else
    constexpr Product WIDENED = PRODUCT_F32;  // 12 sums make too little of what widening costs: once for all rows
#endif
    // A row of f32 has no element that could meet what pads an odd key.
    return {k && scores                ? PRODUCT_BF16
            : k && c.dim_qk % 2 == 0 ? WIDENED
                                       : PRODUCT_F32,
            v && values ? PRODUCT_BF16 : v ? WIDENED : PRODUCT_F32};
}

// Elements of a row of q: of whole dwords.
inline int64_t q_width(const Attention &c, Stages stage) {
    return stage.scores == PRODUCT_BF16 ? (c.dim_qk + 1) / 2 * 2 : c.dim_qk;
}

// Bytes of scratch of `attend_tiles`.
inline int64_t tile_scratch(const Attention &c) {
    return ((c.dim_qk + 1) * KEYS + KEYS * out_width(c) + BLOCK * KEYS) * 4;
}

// Row `row` of q for `attend_tiles`.
inline void take_q(const Attention &c, bool pairs, int64_t token, int64_t head, void *to) {
    int64_t from = token * c.q_stride + head * c.dim_qk, d = 0;
    if (pairs) {
        uint16_t *numbers = static_cast<uint16_t *>(to);
        std::memcpy(numbers, static_cast<const uint16_t *>(c.q) + from, size_t(c.dim_qk) * 2);
        if (c.dim_qk % 2) numbers[c.dim_qk] = 0;
        return;
    }
    float *x = static_cast<float *>(to);
    for (; d + W <= c.dim_qk; d += W) store(x + d, load_any(c.q, from + d, c.q_dtype));
    for (; d < c.dim_qk; d++) x[d] = load_one(c.q, from + d, c.q_dtype);
}

// Asks for piece `i` of `pieces` of the tiles from `key` on: while what is there is computed with, memory has nothing
// else to do, and where the next page lies the processor can't know.
inline void prefetch_tiles(const KeySource &source, int64_t key, int64_t last, int64_t i, int64_t pieces) {
    if (!source.blocks) return;
    const KVTilesPair &kv = source.c.cache;
    for (int64_t end = std::min(last, key + KEYS); key < end; key += TILE)
        for (const KVTiles *x : {&kv.k, &kv.v}) {
            const unsigned char *tile = source.tile_at(*x, key);
            const int64_t lines = x->tile_bytes / 64;
            for (int64_t line = lines * i / pieces; line < lines * (i + 1) / pieces; line++)
                __builtin_prefetch(tile + line * 64, 0, 2);
        }
}

// The state of rows after keys [first, last): first a multiple of 16. scratch: of tile_scratch bytes, 64-byte aligned.
inline void attend_tiles(const KeySource &source, const Rows &rows, int64_t first, int64_t last, Stages stage,
                         unsigned char *scratch) {
    const Attention &c = source.c;
    constexpr int TILES = KEYS / TILE;
    const int64_t width = out_width(c), k_dwords = (c.dim_qk + 1) * TILE, v_dwords = TILE * width;
    const bool k_pairs = stage.scores != PRODUCT_F32, v_pairs = stage.values != PRODUCT_F32;
    const int64_t depth = k_pairs ? (c.dim_qk + 1) / 2 : c.dim_qk;
    uint32_t *keys = reinterpret_cast<uint32_t *>(scratch), *values = keys + TILES * k_dwords;
    float *s = reinterpret_cast<float *>(values + TILES * v_dwords);
    const uint32_t *q = static_cast<const uint32_t *>(rows.q);
    const int64_t q_stride = stage.scores == PRODUCT_BF16 ? rows.q_width / 2 : rows.q_width;
    const int64_t blocks = (rows.count + BLOCK - 1) / BLOCK;
    for (int64_t key = first; key < last; key += KEYS) {
        const int64_t end = std::min(last, key + KEYS);
        const uint32_t *k[TILES], *v[TILES];
        int tiles = 0;
        for (int64_t at = key; at < end; at += TILE, tiles++) {
            const int count = int(std::min<int64_t>(TILE, end - at));
            k[tiles] = k_tile(source, at, count, k_pairs, keys + tiles * k_dwords);
            v[tiles] = v_tile(source, at, count, v_pairs, values + tiles * v_dwords);
        }
        int looked = -1;  // whether a value is infinite or NaN, once it matters
        for (int64_t b = 0; b < blocks; b++) {
            prefetch_tiles(source, key + KEYS, last, b, blocks);
            const int64_t r = b * BLOCK, n = std::min<int64_t>(BLOCK, rows.count - r);
            int64_t low = INT64_MAX, high = 0;
            for (int64_t i = r; i < r + n; i++) {
                low = std::min<int64_t>(low, rows.row[i].low);
                high = std::max<int64_t>(high, rows.row[i].high);
            }
            if (high <= key || low >= end) continue;
            const int here = int(std::min<int64_t>(tiles, (high - key + TILE - 1) / TILE)), count = here * TILE;
            bool all = true;
            for (int64_t i = r; i < r + n; i++) all = all && sees_all(rows.row[i], key, count);
            if (!all && looked < 0) {
                looked = 0;
                for (int t = 0; t < tiles; t++) looked |= has_broken(v[t], v_dwords / (v_pairs ? 2 : 1), v_pairs);
            }
            with_count(n, [&](auto count_of) {
                constexpr int R = decltype(count_of)::value;
                with_product(stage.scores, [&](auto product) {
                    by_vectors(count / W, [&](int64_t first_vector, auto vectors) {
                        score<decltype(product)::value, R, decltype(vectors)::value>(q + r * q_stride, q_stride, k,
                                                                                     first_vector, depth, s);
                    });
                });
                float factor[R], *acc = rows.acc + r * width;
                auto step = count == KEYS ? soften<R, true> : soften<R, false>;
                step(c, rows.row + r, key, count, all, stage.values == PRODUCT_BF16, s, rows.top + r, rows.total + r,
                     factor);
                if (!all && looked) {
                    for (int i = 0; i < R; i++)
                        add_seen_values(rows.row[r + i], key, count, s + i * KEYS, v, width, stage.values, factor[i],
                                        acc + i * width);
                    return;
                }
                with_product(stage.values, [&](auto product) {
                    by_vectors(width / W, [&](int64_t vector, auto vectors) {
                        add_values<decltype(product)::value, R, decltype(vectors)::value>(s, v, here, width, vector * W,
                                                                                          factor, acc);
                    });
                });
            });
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
