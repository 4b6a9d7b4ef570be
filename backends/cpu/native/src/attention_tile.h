// Attention of some rows over tiles of keys: scores = q K^T, online softmax (Milakov and Gimelshein 2018), acc += p V.
// Products in f32, or of bf16 pairs with f32 sums (dpbf16) where both factors are bf16: q and K by their types, which
// is exact, p and V by `numerics.probabilities`. Where only K or V is bf16, it is widened on the way.
#pragma once
#include "attention_keys.h"
#include "processor.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

#if OPSOCKET_AVX512
constexpr int BROAD = 4;  // vectors beside each other in a product: 6 rows by 4 vectors of sums
#else
constexpr int BROAD = 2;  // 16 registers
#endif
#if OPSOCKET_AMX
constexpr int BLOCK = 16;  // rows of a product
constexpr int64_t MOST_ROWS = 192;  // at a time: tiles of values are copied once for all of them
#else
constexpr int BLOCK = 6;
constexpr int64_t MOST_ROWS = 96;  // tiles of keys and values are widened once for all of them
#endif

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

// The same of pairs b(v) that are widened, and of two f32 for each. One half after the other, read anew: the compiler
// would take both at once, and keep sums in memory, as registers are too few for that.
template <int R, int V, class Vectors>
inline void add_pairs(F (&sums)[R][V], const uint32_t *a, int64_t stride, const Vectors &b) {
    U y[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) y[v] = b(v) << 16;
    add_products<PRODUCT_F32>(sums, a, stride, y);
    asm volatile("" ::: "memory");
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) y[v] = b(v) & 0xffff0000u;
    add_products<PRODUCT_F32>(sums, a + 1, stride, y);
    asm volatile("" ::: "memory");
}

// s[r][j] = the products of q[r] with keys j of W * V from vector `first` on; depth: dwords of a key. This loop and that of
// `add_values` run once at least: where they might not, gcc 12 takes all sums through memory before and after them.
template <int P, int R, int V>
[[gnu::always_inline]] inline void score(const uint32_t *q, int64_t stride, const uint32_t *const *tiles, int64_t first,
                                         int64_t depth, float *s) {
    const uint32_t *k[V];
    F sums[R][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        k[v] = tiles[(first + v) * W / TILE] + (first + v) * W % TILE;
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) sums[r][v] = set(0.0f);
    }
    int64_t i = 0;
    do {
        if constexpr (P == PRODUCT_MIXED) {
            add_pairs(sums, q + i * 2, stride, [&](int v) { return load_as<U>(k[v] + i * TILE); });
        } else {
            U b[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) b[v] = load_as<U>(k[v] + i * TILE);
            add_products<P>(sums, q + i, stride, b);
        }
    } while (++i < depth);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(s + r * KEYS + (first + v) * W, sums[r][v]);
}

// acc[r][j] += p[r] * V, for dims [d, d + W * V) and `count` tiles; p: [R][KEYS], or as pairs in the first half of a row.
template <int P, int R, int V>
[[gnu::always_inline]] inline void add_values(const float *p, const uint32_t *const *tiles, int count, int64_t width,
                                              int64_t d, float *acc) {
    constexpr int ROWS = P == PRODUCT_F32 ? TILE : TILE / 2;
    const uint32_t *a = reinterpret_cast<const uint32_t *>(p);
    F sums[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = load(acc + r * width + d + v * W);
    int t = 0;
    do {
        const uint32_t *tile = tiles[t] + d;
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
    } while (++t < count);
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

// How far above a row's top its logits may lie, as a power of two: what is summed stays far from infinity, and with most
// tiles of keys no top changes, so that nothing is rescaled and no probability waits for the largest logit.
constexpr float HEADROOM = 8;

// Of products s[R][KEYS] with `count` keys: rows whose largest logit lies further above their top take it for their top,
// and their sums are rescaled. Each row by itself, so that no result depends on what else is in its block.
template <int R>
[[gnu::noinline]] void raise_tops(const float *s, int count, float scale, int64_t width, float *tops, float *totals,
                                  float *acc) {
    F most[R];
    for (int r = 0; r < R; r++) {
        most[r] = load(s + r * KEYS);
        for (int j = W; j < count; j += W) most[r] = max(load(s + r * KEYS + j), most[r]);
    }
    const F old = load_part(tops, 0, F32, R), largest = across<R>(most, [](F a, F b) { return max(a, b); }) * scale;
    const F top = (largest - old) * LOG2_E > HEADROOM ? largest : old;
    store_part(tops, 0, F32, top, R);
    if (!any_above(load_part(totals, 0, F32, R), 0)) return;
    alignas(64) float carried[W];
    store(carried, exp(old == top ? set(0.0f) : old - top));
    for (int r = 0; r < R; r++) {
        if (carried[r] == 1) continue;
        totals[r] *= carried[r];
        for (int64_t d = 0; d < width; d += W) store(acc + r * width + d, load(acc + r * width + d) * carried[r]);
    }
}

// A step of the online softmax for R rows: raw products s[R][KEYS] with keys [key, key + count) become exp(logit - top),
// as f32, or as bf16 in the first half of a row; top: no more than HEADROOM below the largest logit so far. acc: rescaled
// where a top changes. all: whether every row sees every key. WHOLE: count is KEYS.
template <int R, bool WHOLE, bool PAIRS>
inline void soften_rows(const Attention &c, const Row *row, int64_t key, int some, bool all, int64_t width, float *s,
                        float *tops, float *totals, float *acc) {
    const int count = WHOLE ? KEYS : some;
    // A scale that is not negative can wait until the largest product is known.
    const bool raw = all && c.softcap == 0 && !c.slopes && c.scale > 0;
    const float scale = raw ? c.scale : 1.0f;
    if (!raw)
        for (int r = 0; r < R; r++) make_logits(c, row[r], key, count, s + r * KEYS);
    const F by = set(scale * LOG2_E);
    F above = set(-INFINITY);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        F most = load(s + r * KEYS);
        for (int j = W; j < count; j += W) most = max(load(s + r * KEYS + j), most);
        // Above a top of -inf is anything but -inf, which leaves NaN here, and max what was.
        above = max(most * by - tops[r] * LOG2_E, above);
    }
    if (any_above(above, HEADROOM)) raise_tops<R>(s, count, scale, width, tops, totals, acc);
    const F top = load_part(tops, 0, F32, R);
    alignas(64) float from[W];
    store(from, top == -INFINITY ? set(0.0f) : top * LOG2_E);
    F sums[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        float *row_s = s + r * KEYS;
        const auto take = [&](int j) { return exp2(load(row_s + j) * by - from[r]); };
        sums[r] = set(0.0f);
        int j = 0;
        if constexpr (PAIRS)
            for (; j + 2 * W <= count; j += 2 * W) {
                const F p = take(j), next = take(j + W);
                store_probabilities(reinterpret_cast<uint16_t *>(row_s) + j, p, next);
                sums[r] += p + next;
            }
        for (; j < count; j += W) {
            const F p = take(j);
            if constexpr (PAIRS) store_probabilities(reinterpret_cast<uint16_t *>(row_s) + j, p);
            else store(row_s + j, p);
            sums[r] += p;
        }
    }
    const F total = load_part(totals, 0, F32, R) + across<R>(sums, [](F a, F b) { return a + b; });
    store_part(totals, 0, F32, total, R);
}

// The same, by as many rows as a vector has lanes.
template <int R, bool WHOLE, bool PAIRS>
inline void soften(const Attention &c, const Row *row, int64_t key, int some, bool all, int64_t width, float *s,
                   float *tops, float *totals, float *acc) {
    constexpr int HERE = std::min(R, W);
    soften_rows<HERE, WHOLE, PAIRS>(c, row, key, some, all, width, s, tops, totals, acc);
    if constexpr (R > HERE)
        soften<R - HERE, WHOLE, PAIRS>(c, row + HERE, key, some, all, width, s + HERE * KEYS, tops + HERE,
                                       totals + HERE, acc + HERE * width);
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
                            int64_t width, Product product, float *acc) {
    const bool pairs = product != PRODUCT_F32;
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
#if OPSOCKET_AMX
    scores = values = true;  // in parts
#elif OPSOCKET_AVX512_BF16
    scores = c.q_dtype == BF16, values = c.bf16_probabilities;
#endif
    Product widened = PRODUCT_F32;  // once for all rows: 12 sums make too little of what widening costs
#if OPSOCKET_AVX512
    if (processor.pipes_beside_products) widened = PRODUCT_MIXED;
#endif
    // A row of f32 has no element that could meet what pads an odd key.
    return {k && scores                ? PRODUCT_BF16
            : k && c.dim_qk % 2 == 0 ? widened
                                       : PRODUCT_F32,
            v && values ? PRODUCT_BF16 : v ? widened : PRODUCT_F32};
}

#if OPSOCKET_AMX
// A row of q as bf16 parts, one behind the other, whose sum it is: three of f32, two of f16.
constexpr int parts_of(int32_t dtype) { return dtype == BF16 ? 1 : dtype == F16 ? 2 : 3; }

// Cut and not rounded, so that each has 8 of the number's bits; of what is no finite number all but the first are 0.
template <int PARTS> inline void store_parts(F x, uint16_t *to, int64_t stride) {
    const __mmask16 finite = _mm512_cmplt_epi32_mask((__m512i)(as_int(x) & 0x7fffffff), _mm512_set1_epi32(0x7f800000));
    x = (F)_mm512_mask_or_epi32((__m512i)x, _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q), (__m512i)x, _mm512_set1_epi32(0x400000));
    for (int p = 0; p < PARTS; p++) {
        const I part = as_int(x) & int32_t(0xffff0000);
        _mm256_storeu_si256((__m256i *)(to + p * stride), _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)part, 16)));
        x = (F)_mm512_maskz_sub_ps(finite, (__m512)x, (__m512)part);
    }
}
#endif

// Elements of a row of q: of whole dwords.
inline int64_t q_width(const Attention &c, Stages stage) {
#if OPSOCKET_AMX
    if (stage.scores == PRODUCT_BF16) return (c.dim_qk + W - 1) / W * W * parts_of(c.q_dtype);
#endif
    return stage.scores == PRODUCT_BF16 ? (c.dim_qk + 1) / 2 * 2 : c.dim_qk;
}

// Bytes of scratch of `attend_tiles`.
inline int64_t tile_scratch(const Attention &c) {
    int64_t parts = 0;
#if OPSOCKET_AMX
    parts = 3 * BLOCK * KEYS * 2;  // of probabilities
#endif
    return ((c.dim_qk + 1) * KEYS + KEYS * out_width(c) + BLOCK * KEYS) * 4 + parts;
}

// Row `row` of q for `attend_tiles`.
inline void take_q(const Attention &c, bool pairs, int64_t token, int64_t head, void *to) {
    int64_t from = token * c.q_stride + head * c.dim_qk, d = 0;
#if OPSOCKET_AMX
    if (pairs) {
        const int64_t padded = (c.dim_qk + W - 1) / W * W;
        for (; d < c.dim_qk; d += W) {
            const F x = load_part(c.q, from + d, c.q_dtype, int(std::min<int64_t>(W, c.dim_qk - d)));
            uint16_t *part = static_cast<uint16_t *>(to) + d;
            if (c.q_dtype == BF16) store_parts<1>(x, part, padded);
            else if (c.q_dtype == F16) store_parts<2>(x, part, padded);
            else store_parts<3>(x, part, padded);
        }
        return;
    }
#endif
    if (pairs) {
        uint16_t *numbers = static_cast<uint16_t *>(to);
        const uint16_t *q = static_cast<const uint16_t *>(c.q) + from;
        for (; d + W <= c.dim_qk; d += W) std::memcpy(numbers + d, q + d, W * 2);
        for (; d < c.dim_qk; d++) numbers[d] = q[d];
        if (c.dim_qk % 2) numbers[c.dim_qk] = 0;
        return;
    }
    float *x = static_cast<float *>(to);
    for (; d + W <= c.dim_qk; d += W) store(x + d, load_any(c.q, from + d, c.q_dtype));
    for (; d < c.dim_qk; d++) x[d] = load_one(c.q, from + d, c.q_dtype);
}

// The tiles of the next keys, which are asked for piece by piece: while what is there is computed with, memory has
// nothing else to do, and where the next page lies the processor can't know.
class Ahead {
   public:
    Ahead(const KeySource &source, int64_t key, int64_t last, int64_t pieces) {
        if (!source.blocks) return;
        for (int64_t end = std::min(last, key + KEYS); key < end; key += TILE)
            for (const KVTiles *x : {&source.c.cache.k, &source.c.cache.v}) {
                tiles_[count_] = source.tile_at(*x, key), bytes_[count_] = x->tile_bytes;
                piece_[count_++] = (x->tile_bytes / 64 + pieces - 1) / pieces * 64;
            }
    }
    void ask(int64_t piece) const {
        for (int i = 0; i < count_; i++)
            for (int64_t at = piece_[i] * piece; at < std::min(bytes_[i], piece_[i] * (piece + 1)); at += 64)
                __builtin_prefetch(tiles_[i] + at, 0, 2);
    }

   private:
    int count_ = 0;
    const unsigned char *tiles_[2 * KEYS / TILE];
    int64_t bytes_[2 * KEYS / TILE], piece_[2 * KEYS / TILE];
};

// What a block of rows sees: keys that some row sees are in [low, high), all rows see those of [first, last).
struct Sight {
    int64_t low = INT64_MAX, high = 0, first = 0, last = INT64_MAX;

    void add(const Row &row) {
        low = std::min<int64_t>(low, row.low), high = std::max<int64_t>(high, row.high);
        first = std::max<int64_t>(first, row.low);
        last = std::min<int64_t>(last, row.tree ? std::min(row.high, row.history) : row.high);
    }
};

#if !OPSOCKET_AMX
// The state of MOST_ROWS rows at most after keys [first, last): first a multiple of 16. scratch: of tile_scratch bytes,
// 64-byte aligned.
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
    Sight sights[MOST_ROWS / BLOCK];
    for (int64_t i = 0; i < rows.count; i++) sights[i / BLOCK].add(rows.row[i]);
    for (int64_t key = first; key < last; key += KEYS) {
        const int64_t end = std::min(last, key + KEYS);
        const uint32_t *k[TILES], *v[TILES];
        int tiles = 0;
        for (int64_t at = key; at < end; at += TILE, tiles++) {
            const int count = int(std::min<int64_t>(TILE, end - at));
            k[tiles] = k_tile(source, at, count, k_pairs, keys + tiles * k_dwords);
            v[tiles] = v_tile(source, at, count, v_pairs, values + tiles * v_dwords);
        }
        const Ahead ahead(source, key + KEYS, last, blocks);
        int looked = -1;  // whether a value is infinite or NaN, once it matters
        for (int64_t b = 0; b < blocks; b++) {
            ahead.ask(b);
            const Sight &sight = sights[b];
            if (sight.high <= key || sight.low >= end) continue;
            const int64_t r = b * BLOCK, n = std::min<int64_t>(BLOCK, rows.count - r);
            const int here = int(std::min<int64_t>(tiles, (sight.high - key + TILE - 1) / TILE)), count = here * TILE;
            const bool all = sight.first <= key && key + count <= sight.last;
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
                float *acc = rows.acc + r * width;
                with_product(stage.values, [&](auto product) {
                    constexpr int P = decltype(product)::value;
                    constexpr bool PAIRS = P == PRODUCT_BF16;
                    const auto step = count == KEYS ? soften<R, true, PAIRS> : soften<R, false, PAIRS>;
                    step(c, rows.row + r, key, count, all, width, s, rows.top + r, rows.total + r, acc);
                    if (!all && looked) {
                        for (int i = 0; i < R; i++)
                            add_seen_values(rows.row[r + i], key, count, s + i * KEYS, v, width, stage.values,
                                            acc + i * width);
                        return;
                    }
                    by_vectors(width / W, [&](int64_t vector, auto vectors) {
                        add_values<P, R, decltype(vectors)::value>(s, v, here, width, vector * W, acc);
                    });
                });
            });
        }
    }
}
#endif

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
