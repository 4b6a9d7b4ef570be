// Tiles of 16 keys of one KV head as the products of attention_tile.h take them, from a cache of layout "tiles16" in any
// format, or from contiguous arrays.
//
//   f32:   K [dim_qk][16],             V [16][v_width(dim_vo)]
//   pairs: K [ceil(dim_qk / 2)][16],   V [8][v_width(dim_vo)], dwords of two bf16: of two dims, of two keys
//
// Pairs are what a bf16 cache holds, and are read where they lie. Values of keys beyond those asked for are zeros,
// whatever the cache holds there; keys may be anything.
#pragma once
#include "attention_rows.h"
#include "transpose.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// Where the keys of one sequence and KV head are.
struct KeySource {
    const Attention &c;
    const int32_t *blocks;  // null: contiguous
    int64_t first_row;      // of contiguous keys
    int64_t head;

    KeySource(const Attention &command, int64_t sequence, int64_t kv_head)
        : c(command),
          blocks(command.cache.k.data ? command.batch->block_table + sequence * command.batch->table_width : nullptr),
          first_row(blocks ? 0 : command.batch->kv_indptr[sequence]),
          head(kv_head) {}

    unsigned char *tile_at(const KVTiles &x, int64_t key) const {
        int64_t j = key / TILE;
        return tile(x, c.cache.heads, c.cache.tiles, blocks[j / c.cache.tiles], head, j % c.cache.tiles);
    }
};

// Static scales: of a head, or of dim d of it.
inline float one_scale(const KVTiles &x, int64_t head) {
    return x.granularity == SCALE_TENSOR ? x.scale[0] : x.granularity == SCALE_HEAD ? x.scale[head] : 1.0f;
}

// ---- f32

template <int32_t C> inline void widen_k_tile(const KVTiles &k, int64_t head, const unsigned char *tile, float *keys) {
    constexpr int n = kv_per_dword(C);
    bool by_token = k.granularity == SCALE_TOKEN_HEAD;
    const float *scales = reinterpret_cast<const float *>(tile + k_code_bytes(C, k.dim));
    const float *channels = k.granularity == SCALE_CHANNEL ? k.scale + head * k.dim : nullptr;
    F common = set(one_scale(k, head));
    for (int part = 0; part < TILE; part += W) {
        F scale = by_token ? load(scales + part) : common;
        for (int64_t d = 0; d < k.dim; d += n) {
            U dwords = load_as<U>(tile + d / n * 64 + part * 4);
            for (int r = 0; r < n && d + r < k.dim; r++) {
                F x = kv_decode<C>(kv_field<C>(dwords, r)) * (channels ? set(channels[d + r]) : scale);
                store(keys + (d + r) * TILE + part, x);
            }
        }
    }
}

template <int32_t C>
inline void widen_v_tile(const KVTiles &v, int64_t head, const unsigned char *tile, int count, float *values) {
    constexpr int n = kv_per_dword(C);
    int64_t width = v_width(v.dim);
    const float *scales =
        v.granularity == SCALE_TOKEN_HEAD ? reinterpret_cast<const float *>(tile + v_code_bytes(C, v.dim)) : nullptr;
    const float *channels = v.granularity == SCALE_CHANNEL ? v.scale + head * v.dim : nullptr;
    float common = one_scale(v, head);
    for (int t = 0; t < count; t += n)
        for (int64_t d = 0; d < width; d += W) {
            U dwords = load_as<U>(tile + (t / n * width + d) * 4);
            F by_dim = !channels         ? set(1.0f)
                       : d + W <= v.dim ? load(channels + d)
                                        : load_part(channels, d, F32, d < v.dim ? int(v.dim - d) : 0);
            for (int r = 0; r < n && t + r < count; r++) {
                F x = kv_decode<C>(kv_field<C>(dwords, r));
                x = channels ? x * by_dim : x * (scales ? scales[t + r] : common);
                store(values + (t + r) * width + d, x);
            }
        }
}

inline void widen_rows(const void *from, int64_t base, int64_t stride, int32_t dtype, int64_t count, int64_t dim,
                       float *to, int64_t to_stride) {
    for (int64_t t = 0; t < count; t++) {
        int64_t i = base + t * stride, d = 0;
        for (; d + W <= dim; d += W) store(to + t * to_stride + d, load_any(from, i + d, dtype));
        for (; d < dim; d++) to[t * to_stride + d] = load_one(from, i + d, dtype);
        for (; d < to_stride && d % TILE; d++) to[t * to_stride + d] = 0;
    }
}

// ---- pairs of contiguous bf16 values

inline void pair_rows(const KeySource &s, int64_t key, int count, uint32_t *values) {
    const Attention &c = s.c;
    const int64_t width = out_width(c);
    const uint16_t *v = static_cast<const uint16_t *>(c.v) + (s.first_row + key) * c.v_stride + s.head * c.dim_vo;
    for (int t = 0; t < count; t += 2) {
        const uint16_t *even = v + t * c.v_stride, *odd = even + (t + 1 < count ? c.v_stride : 0);
        uint32_t *to = values + t / 2 * width;
        int64_t d = 0;
        for (; d + W <= c.dim_vo; d += W) {
            U low = __builtin_convertvector(load_as<UH>(even + d), U);
            U pair = low | __builtin_convertvector(load_as<UH>(odd + d), U) << 16;
            std::memcpy(to + d, &pair, sizeof pair);
        }
        for (; d < c.dim_vo; d++) to[d] = even[d] | uint32_t(odd[d]) << 16;
        for (; d < width; d++) to[d] = 0;
    }
}

// ---- what both have in common: tokens [key, key + count) of a tile, count at most 16, key a multiple of 16 with a
// cache; where the tile is: in `memory` [(dim_qk + 1) * 16], or in the cache

inline const uint32_t *k_tile(const KeySource &s, int64_t key, int count, bool pairs, uint32_t *memory) {
    const Attention &c = s.c;
    if (s.blocks) {
        const unsigned char *tile = s.tile_at(c.cache.k, key);
        if (pairs) return reinterpret_cast<const uint32_t *>(tile);
        with_code(c.cache.k.code, [&](auto code) {
            widen_k_tile<decltype(code)::value>(c.cache.k, s.head, tile, reinterpret_cast<float *>(memory));
        });
        return memory;
    }
    const int64_t together = pairs ? 2 : 1, base = (s.first_row + key) * c.k_stride + s.head * c.dim_qk;
    alignas(64) uint32_t block[TILE][TILE];
    for (int64_t d = 0; d < c.dim_qk; d += TILE * together) {
        const int64_t dims = std::min<int64_t>(TILE * together, c.dim_qk - d);
        if (!pairs) {
            widen_rows(c.k, base + d, c.k_stride, c.kv_dtype, count, dims, reinterpret_cast<float *>(block), TILE);
        } else {
            for (int64_t t = 0; t < count; t++) {
                if (dims < TILE * together) std::memset(block[t], 0, sizeof block[t]);
                std::memcpy(block[t], at(c.k, base + d + t * c.k_stride, BF16), size_t(dims) * 2);
            }
        }
        transpose16(block[0], TILE);
        std::memcpy(memory + d / together * TILE, block, size_t((dims + together - 1) / together) * sizeof block[0]);
    }
    return memory;
}

// memory: [16 * v_width(dim_vo)]
inline const uint32_t *v_tile(const KeySource &s, int64_t key, int count, bool pairs, uint32_t *memory) {
    const Attention &c = s.c;
    const int64_t width = out_width(c), together = pairs ? 2 : 1;
    if (s.blocks) {
        const unsigned char *tile = s.tile_at(c.cache.v, key);
        if (pairs && count == TILE) return reinterpret_cast<const uint32_t *>(tile);
        if (pairs) std::memcpy(memory, tile, size_t(TILE / 2 * width) * 4);
        else
            with_code(c.cache.v.code, [&](auto code) {
                widen_v_tile<decltype(code)::value>(c.cache.v, s.head, tile, count, reinterpret_cast<float *>(memory));
            });
    } else if (!pairs) {
        const int64_t base = (s.first_row + key) * c.v_stride + s.head * c.dim_vo;
        widen_rows(c.v, base, c.v_stride, c.kv_dtype, count, c.dim_vo, reinterpret_cast<float *>(memory), width);
    } else {
        pair_rows(s, key, count, memory);
    }
    if (count % together)
        for (int64_t d = 0; d < width; d++) memory[count / 2 * width + d] &= 0xffff;
    const int64_t filled = (count + together - 1) / together;
    std::memset(memory + filled * width, 0, size_t(TILE / together - filled) * size_t(width) * 4);
    return memory;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
