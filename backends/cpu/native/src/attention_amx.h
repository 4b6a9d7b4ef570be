// The tiles of attention_tile.h over K and V of bf16, by AMX: 16 rows by 16 keys, and by 16 dims. K and V lie in a cache, and
// are brought elsewhere, as tiles of a second factor do; probabilities are a first one where the softmax leaves them. Queries and
// probabilities that are no bf16 are two or three bf16 parts, whose products add up in f32.
#pragma once
#include "amx.h"
#include "attention_tile.h"
#if OPSOCKET_AMX

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int DEPTH = 16;  // dwords, pairs of dims or of keys, that a product is summed over

// Tiles: 0 to 3 sums; 4 and 5 rows, whole and of `rest` dwords; 6 and 7 keys or values for these.
inline TileShapes attention_shapes(int64_t rows, int64_t rest) {
    TileShapes shapes;
    for (int t : {0, 1, 2, 3, 4}) shapes.set(t, rows, 64);
    shapes.set(5, rows, rest * 4), shapes.set(6, DEPTH, 64), shapes.set(7, rest, 64);
    return shapes;
}

// f(Count<0>()) to f(Count<N - 1>()) for the first `count` of them.
template <int N, class Fn> [[gnu::always_inline]] inline void each_tile(int count, const Fn &f) {
    f(Count<0>());
    if constexpr (N > 1)
        if (count > 1) f(Count<1>());
    if constexpr (N > 2)
        if (count > 2) f(Count<2>());
    if constexpr (N > 3)
        if (count > 3) f(Count<3>());
}

// s = products of rows of q, q_bytes from one to the next, in parts that stand part_dwords apart, with the keys of `count`
// tiles, of `depth` dwords.
inline void score_tiles(const uint32_t *q, int64_t q_bytes, int parts, int64_t part_dwords, const uint32_t *const *k, int count,
                        int64_t depth, float *s) {
    each_tile<4>(count, [](auto t) { zero_tile<decltype(t)::value>(); });
    for (; parts; parts--, q += part_dwords) {
        int64_t i = 0;
        for (; i + DEPTH <= depth; i += DEPTH) {
            load_tile<4>(q + i, q_bytes);
            each_tile<4>(count, [&](auto t) {
                constexpr int T = decltype(t)::value;
                load_tile<6>(k[T] + i * TILE, 64), add_bf16<T, 4, 6>();
            });
        }
        if (i < depth) {
            load_tile<5>(q + i, q_bytes);
            each_tile<4>(count, [&](auto t) {
                constexpr int T = decltype(t)::value;
                load_tile<7>(k[T] + i * TILE, 64), add_bf16<T, 5, 7>();
            });
        }
    }
    each_tile<4>(count, [&](auto t) { store_tile<decltype(t)::value>(s + decltype(t)::value * TILE, KEYS * 4); });
}

// Probabilities of 16 rows: pairs of bf16, row_bytes from one row to the next, in parts that stand part_dwords apart.
struct Pairs {
    const uint32_t *first;
    int64_t row_bytes, part_dwords;
    int parts;
};

// acc += p times N times 16 dims of the values of `count` tiles, which stand one behind the other.
template <int N> void add_value_tiles(const Pairs &p, const uint32_t *values, int count, int64_t width, float *acc) {
    each_tile<N>(N, [&](auto j) { load_tile<decltype(j)::value>(acc + decltype(j)::value * TILE, width * 4); });
    const uint32_t *pairs = p.first;
    for (int part = 0; part < p.parts; part++, pairs += p.part_dwords) {
        const uint32_t *v = values;
        int t = 0;
        for (; t + 2 <= count; t += 2, v += DEPTH * width) {
            load_tile<4>(pairs + t * TILE / 2, p.row_bytes);
            each_tile<N>(N, [&](auto j) {
                constexpr int J = decltype(j)::value;
                load_tile<6>(v + J * TILE, width * 4), add_bf16<J, 4, 6>();
            });
        }
        if (t < count) {
            load_tile<5>(pairs + t * TILE / 2, p.row_bytes);
            each_tile<N>(N, [&](auto j) {
                constexpr int J = decltype(j)::value;
                load_tile<7>(v + J * TILE, width * 4), add_bf16<J, 5, 7>();
            });
        }
    }
    each_tile<N>(N, [&](auto j) { store_tile<decltype(j)::value>(acc + decltype(j)::value * TILE, width * 4); });
}

// Whether any of `count` pairs of values has one that parts of probabilities can't be multiplied with as f32 is: infinite or NaN,
// as some parts are 0, or so small that products are subnormal, which are 0 to tiles.
inline bool has_strange(const uint32_t *values, int64_t count) {
    const __m512i least = _mm512_set1_epi16(27 << 7), range = _mm512_set1_epi16(0x7f80 - (27 << 7));  // 2^-100 to infinity
    __mmask32 strange = 0;
    for (int64_t i = 0; i < count; i += W) {
        const __m512i size = _mm512_and_si512(load_as<__m512i>(values + i), _mm512_set1_epi16(0x7fff));
        strange |= _mm512_mask_cmpge_epu16_mask(_mm512_test_epi16_mask(size, size), _mm512_sub_epi16(size, least), range);
    }
    return strange != 0;
}

// A step of the softmax for n rows, as many together as `across` joins.
template <bool PAIRS>
inline void soften_block(const Attention &c, const Row *row, int64_t n, int64_t key, int count, bool all, int64_t width, float *s,
                         float *tops, float *totals, float *acc) {
    auto some = [&](int64_t r, auto rows) {
        constexpr int R = decltype(rows)::value;
        const auto step = count == KEYS ? soften<R, true, PAIRS> : soften<R, false, PAIRS>;
        step(c, row + r, key, count, all, width, s + r * KEYS, tops + r, totals + r, acc + r * width);
    };
    int64_t r = 0;
    for (; r + 8 <= n; r += 8) some(r, Count<8>());
    for (; r + 4 <= n; r += 4) some(r, Count<4>());
    for (; r < n; r++) some(r, Count<1>());
}

// The state of MOST_ROWS rows at most after keys [first, last): first a multiple of 16. scratch: of tile_scratch bytes,
// 64-byte aligned.
inline void attend_tiles(const KeySource &source, const Rows &rows, int64_t first, int64_t last, Stages, unsigned char *scratch) {
    const Attention &c = source.c;
    constexpr int TILES = KEYS / TILE;
    const int64_t width = out_width(c), depth = (c.dim_qk + 1) / 2, k_dwords = (c.dim_qk + 1) * TILE, v_dwords = TILE / 2 * width;
    uint32_t *keys = reinterpret_cast<uint32_t *>(scratch), *values = keys + TILES * k_dwords;
    float *s = reinterpret_cast<float *>(values + TILES * v_dwords);
    const uint32_t *q = static_cast<const uint32_t *>(rows.q);
    uint16_t *const cut = reinterpret_cast<uint16_t *>(s + BLOCK * KEYS);  // probabilities in parts
    const int q_parts = parts_of(c.q_dtype);
    const bool as_parts = !c.bf16_probabilities;
    const Pairs p = as_parts ? Pairs{reinterpret_cast<uint32_t *>(cut), KEYS * 2, BLOCK * KEYS / 2, 3}
                             : Pairs{reinterpret_cast<uint32_t *>(s), KEYS * 4, 0, 1};
    const int64_t q_stride = rows.q_width / 2, part_dwords = q_stride / q_parts, blocks = (rows.count + BLOCK - 1) / BLOCK;
    // Of most numbers of dims what is left of them is nothing, or as much as a tile of values has alone.
    const int64_t rest = depth % DEPTH ? depth % DEPTH : TILE / 2;
    const bool same_rest = rest == TILE / 2;
    int64_t shaped = 0;
    auto shape = [&](int64_t n, int64_t of) {
        if (shaped == n && same_rest) return;
        attention_shapes(n, of).use();
        shaped = n;
    };
    Sight sights[MOST_ROWS / BLOCK];
    for (int64_t i = 0; i < rows.count; i++) sights[i / BLOCK].add(rows.row[i]);
    for (int64_t key = first; key < last; key += KEYS) {
        const int64_t end = std::min(last, key + KEYS);
        const uint32_t *k[TILES], *v[TILES];
        int tiles = 0;
        for (int64_t at = key; at < end; at += TILE, tiles++) {
            const int count = int(std::min<int64_t>(TILE, end - at));
            uint32_t *to = values + tiles * v_dwords;
            k[tiles] = k_tile(source, at, count, true, keys + tiles * k_dwords);
            v[tiles] = v_tile(source, at, count, true, to);
            if (v[tiles] != to) std::memcpy(to, v[tiles], size_t(v_dwords) * 4);
            v[tiles] = to;
        }
        const Ahead ahead(source, key + KEYS, last, blocks);
        int looked = -1;  // whether values are such that rows go one by one, once it matters
        for (int64_t b = 0; b < blocks; b++) {
            ahead.ask(b);
            const Sight &sight = sights[b];
            if (sight.high <= key || sight.low >= end) continue;
            const int64_t r = b * BLOCK, n = std::min<int64_t>(BLOCK, rows.count - r);
            const int here = int(std::min<int64_t>(tiles, (sight.high - key + TILE - 1) / TILE)), count = here * TILE;
            const bool all = sight.first <= key && key + count <= sight.last;
            if ((as_parts || !all) && looked < 0)
                looked = as_parts ? has_strange(values, tiles * v_dwords) : has_broken(values, tiles * v_dwords, true);
            shape(n, rest);
            score_tiles(q + r * q_stride, q_stride * 4, q_parts, part_dwords, k, here, depth, s);
            float *acc = rows.acc + r * width;
            (as_parts ? soften_block<false> : soften_block<true>)(c, rows.row + r, n, key, count, all, width, s, rows.top + r,
                                                                  rows.total + r, acc);
            if ((as_parts || !all) && looked) {
                const Product product = as_parts ? PRODUCT_MIXED : PRODUCT_BF16;
                for (int64_t i = 0; i < n; i++)
                    add_seen_values(rows.row[r + i], key, count, s + i * KEYS, v, width, product, acc + i * width);
                continue;
            }
            for (int64_t i = 0; as_parts && i < n; i++)
                for (int j = 0; j < count; j += W) store_parts<3>(load(s + i * KEYS + j), cut + i * KEYS + j, BLOCK * KEYS);
            shape(n, TILE / 2);
            int64_t d = 0;
            for (; d + 4 * TILE <= width; d += 4 * TILE) add_value_tiles<4>(p, values + d, here, width, acc + d);
            for (; d < width; d += TILE) add_value_tiles<1>(p, values + d, here, width, acc + d);
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
#endif
