// Keys and values of one KV head as tiles of KEYS tokens that the products of attention_tile.h take, from a cache of
// layout "tiles16" in any format, or from contiguous arrays.
//
//   f32:   keys [dim_qk][KEYS],              values [KEYS][v_width(dim_vo)]
//   pairs: keys [ceil(dim_qk / 2)][KEYS],    values [KEYS / 2][v_width(dim_vo)], dwords of two bf16: of two dims, of two keys
//
// Values of keys beyond those asked for are zeros, whatever the cache holds there; keys may be anything.
#pragma once
#include "attention_rows.h"

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

// In place, 16 vectors of 16 dwords: x[i][j] becomes x[j][i].
inline void transpose16(uint32_t *x, int64_t stride) {
#if OPSOCKET_AVX512
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(x + i * stride);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(x + i * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_si512(x + (i + 4) * stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
        _mm512_storeu_si512(x + (i + 8) * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
        _mm512_storeu_si512(x + (i + 12) * stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) std::swap(x[i * stride + j], x[j * stride + i]);
#endif
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
                store(keys + (d + r) * KEYS + part, x);
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

// Keys [key, key + count), count at most KEYS, key a multiple of 16 with a cache.
inline void widen_keys(const KeySource &s, int64_t key, int count, float *keys) {
    const Attention &c = s.c;
    if (s.blocks) {
        with_code(c.cache.k.code, [&](auto code) {
            for (int t = 0; t < count; t += TILE)
                widen_k_tile<decltype(code)::value>(c.cache.k, s.head, s.tile_at(c.cache.k, key + t), keys + t);
        });
        return;
    }
    alignas(64) float block[TILE][TILE];
    for (int t = 0; t < count; t += TILE)
        for (int64_t d = 0; d < c.dim_qk; d += TILE) {
            int64_t dims = std::min<int64_t>(TILE, c.dim_qk - d), tokens = std::min(TILE, count - t);
            int64_t base = (s.first_row + key + t) * c.k_stride + s.head * c.dim_qk + d;
            widen_rows(c.k, base, c.k_stride, c.kv_dtype, tokens, dims, block[0], TILE);
            transpose16(reinterpret_cast<uint32_t *>(block[0]), TILE);
            for (int64_t j = 0; j < dims; j++) std::memcpy(keys + (d + j) * KEYS + t, block[j], sizeof block[j]);
        }
}

inline void widen_values(const KeySource &s, int64_t key, int count, float *values) {
    const Attention &c = s.c;
    int64_t width = out_width(c);
    if (s.blocks) {
        with_code(c.cache.v.code, [&](auto code) {
            for (int t = 0; t < count; t += TILE)
                widen_v_tile<decltype(code)::value>(c.cache.v, s.head, s.tile_at(c.cache.v, key + t),
                                                    std::min(TILE, count - t), values + t * width);
        });
    } else {
        int64_t base = (s.first_row + key) * c.v_stride + s.head * c.dim_vo;
        widen_rows(c.v, base, c.v_stride, c.kv_dtype, count, c.dim_vo, values, width);
    }
    std::memset(values + count * width, 0, size_t(KEYS - count) * width * 4);
}

// ---- bf16 pairs: caches and arrays of bf16

inline void pair_keys(const KeySource &s, int64_t key, int count, uint32_t *keys) {
    const Attention &c = s.c;
    int64_t pairs = (c.dim_qk + 1) / 2;
    if (s.blocks) {
        for (int t = 0; t < count; t += TILE) {
            const unsigned char *tile = s.tile_at(c.cache.k, key + t);
            for (int64_t i = 0; i < pairs; i++) std::memcpy(keys + i * KEYS + t, tile + i * 64, 64);
        }
        return;
    }
    const uint16_t *k = static_cast<const uint16_t *>(c.k) + (s.first_row + key) * c.k_stride + s.head * c.dim_qk;
    alignas(64) uint32_t block[TILE][TILE];
    for (int t = 0; t < count; t += TILE)
        for (int64_t i = 0; i < pairs; i += TILE) {
            int64_t dims = std::min<int64_t>(2 * TILE, c.dim_qk - 2 * i), tokens = std::min(TILE, count - t);
            for (int64_t j = 0; j < tokens; j++) {
                if (dims < 2 * TILE) std::memset(block[j], 0, 64);
                std::memcpy(block[j], k + (t + j) * c.k_stride + 2 * i, size_t(dims) * 2);
            }
            transpose16(block[0], TILE);
            for (int64_t j = 0; 2 * j < dims; j++) std::memcpy(keys + (i + j) * KEYS + t, block[j], 64);
        }
}

inline void pair_values(const KeySource &s, int64_t key, int count, uint32_t *values) {
    const Attention &c = s.c;
    int64_t width = out_width(c);
    if (s.blocks) {
        for (int t = 0; t < count; t += TILE) {
            int rows = std::min(TILE, count - t + 1) / 2;
            std::memcpy(values + t / 2 * width, s.tile_at(c.cache.v, key + t), size_t(rows) * width * 4);
        }
    } else {
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
    if (count % 2)
        for (int64_t d = 0; d < width; d++) values[count / 2 * width + d] &= 0xffff;
    int filled = (count + 1) / 2;
    std::memset(values + filled * width, 0, size_t(KEYS / 2 - filled) * width * 4);
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
