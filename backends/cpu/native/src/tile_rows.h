// One token of one head in and out of a tile, and how the tokens of a batch are shared among threads.
#pragma once
#include <algorithm>

#include "pool.h"
#include "tiles.h"
#include "transpose.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// One side of a cache: the keys or the values of one head, for a run of tokens of the batch.
struct Piece {
    bool keys;
    int64_t head, begin, end;
};

// The tokens of a batch in pieces, few where tokens are. apart: no two pieces of a side have a tile in common, as slots
// of one tile stand together: two tokens of a tile share dwords of V, so two threads must not write them.
class Pieces {
public:
    Pieces(const int64_t *slots, int64_t count, int64_t heads, int64_t least, bool apart)
        : slots_(slots), count_(count), heads_(heads), chunks_(std::max<int64_t>(1, count / least)), apart_(apart) {}

    int64_t total() const { return chunks_ * heads_ * 2; }

    Piece operator[](int64_t i) const {
        int64_t chunk = i / (heads_ * 2), side = i % (heads_ * 2);
        return {side % 2 == 0, side / 2, cut(chunk), cut(chunk + 1)};
    }

private:
    int64_t cut(int64_t chunk) const {
        int64_t i = count_ * chunk / chunks_;
        if (apart_)
            while (i > 0 && i < count_ && slots_[i] / TILE == slots_[i - 1] / TILE) i++;
        return i;
    }

    const int64_t *slots_;
    int64_t count_, heads_, chunks_;
    bool apart_;
};

constexpr int64_t CHUNK = 64;  // tokens that are worth a piece of their own

// What a head's codes are multiplied by where it is not stored with them: one number, or one for each dim.
struct StaticScale {
    float one = 1;
    const float *each = nullptr;  // [dim], then ones up to a multiple of TILE

    // memory: for those of each dim.
    StaticScale(const KVTiles &x, int64_t head, void *memory) {
        if (x.granularity == SCALE_TENSOR) one = x.scale[0];
        else if (x.granularity == SCALE_HEAD) one = x.scale[head];
        else if (x.granularity == SCALE_CHANNEL) {
            float *copy = static_cast<float *>(memory);
            std::fill(std::copy_n(x.scale + head * x.dim, x.dim, copy), copy + v_width(x.dim), 1.0f);
            each = copy;
        }
    }

    F at(int64_t d) const { return each ? load(each + d) : set(one); }
};

// Codes as one number each: bytes up to 8 bits, else of their own size.
template <int32_t C> inline void store_codes(void *codes, int64_t i, U v) {
    if constexpr (kv_bits(C) == 32) __builtin_memcpy(static_cast<uint32_t *>(codes) + i, &v, sizeof v);
    else if constexpr (kv_bits(C) == 16) {
        UH h = __builtin_convertvector(v, UH);
        __builtin_memcpy(static_cast<uint16_t *>(codes) + i, &h, sizeof h);
    } else {
        UB b = __builtin_convertvector(v, UB);
        __builtin_memcpy(static_cast<uint8_t *>(codes) + i, &b, sizeof b);
    }
}
template <int32_t C> inline U load_codes(const void *codes, int64_t i) {
    if constexpr (kv_bits(C) == 32) return load_as<U>(static_cast<const uint32_t *>(codes) + i);
    else if constexpr (kv_bits(C) == 16)
        return __builtin_convertvector(load_as<UH>(static_cast<const uint16_t *>(codes) + i), U);
    else return load_bytes(static_cast<const uint8_t *>(codes) + i);
}

// ---- keys. A token's codes become dwords first, as many as a K tile has vectors.

// Codes of one token's dims, as `store_codes` leaves them, into these dwords; in place.
template <int32_t C> inline void pack_key(unsigned char *codes, int64_t vectors) {
    if constexpr (kv_bits(C) < 8) {
        constexpr int BITS = kv_bits(C), FIELDS = 8 / BITS;
        uint32_t fields[FIELDS];
        for (int64_t i = 0; i < vectors; i++) {
            std::memcpy(fields, codes + i * sizeof fields, sizeof fields);
            for (int f = 1; f < FIELDS; f++) fields[0] |= fields[f] << (BITS * f);
            std::memcpy(codes + i * 4, fields, 4);
        }
    }
}

// One token's dwords into lane t of a K tile.
inline void put_key(unsigned char *tile, int t, const unsigned char *dwords, int64_t vectors) {
    for (int64_t i = 0; i < vectors; i++) std::memcpy(tile + (i * TILE + t) * 4, dwords + i * 4, 4);
}

// The dwords of all 16 tokens into a K tile.
inline void put_keys(unsigned char *tile, const unsigned char *const *dwords, int64_t vectors) {
#if OPSOCKET_AVX512
    for (int64_t i = 0; i < vectors; i += TILE) {
        const int count = int(std::min<int64_t>(TILE, vectors - i));
        const __mmask16 there = __mmask16((1u << count) - 1);
        transpose_rows([&](int t) { return _mm512_maskz_loadu_epi32(there, dwords[t] + i * 4); },
                       [&](int j, __m512i v) {
                           if (j < count) _mm512_storeu_si512(tile + (i + j) * 64, v);
                       });
    }
#else
    for (int64_t i = 0; i < vectors; i++)
        for (int t = 0; t < TILE; t++) std::memcpy(tile + (i * TILE + t) * 4, dwords[t] + i * 4, 4);
#endif
}

// A token's dwords of a K tile as codes, as `store_codes` leaves them.
template <int32_t C> inline void take_key(const unsigned char *tile, int t, void *codes, int64_t vectors) {
    const uint32_t *from = reinterpret_cast<const uint32_t *>(tile) + t;
    uint32_t *to = static_cast<uint32_t *>(codes);
    for (int64_t i = 0; i < vectors; i++) {
        uint32_t dword = from[i * TILE];
        if constexpr (C == KV_I4) {
            to[2 * i] = dword & 0x0f0f0f0f;
            to[2 * i + 1] = dword >> 4 & 0x0f0f0f0f;
        } else if constexpr (C == KV_I2) {
            for (int f = 0; f < 4; f++) to[4 * i + f] = dword >> 2 * f & 0x03030303;
        } else to[i] = dword;
    }
}

// ---- values

// A field of some dwords of a V tile.
inline void put_field(unsigned char *dwords, int bits, int shift, U codes) {
    if (bits < 32) {
        U mask = U{} + (((1u << bits) - 1) << shift);
        codes = (load_as<U>(dwords) & ~mask) | (codes << shift & mask);
    }
    __builtin_memcpy(dwords, &codes, sizeof codes);
}

// One token's codes, as `store_codes` leaves them, into a V tile of that many dims.
template <int32_t C> inline void put_value(unsigned char *tile, int t, const unsigned char *codes, int64_t width) {
    unsigned char *dwords = tile + t / kv_per_dword(C) * width * 4;
    const int shift = kv_shift(C, t % kv_per_dword(C));
    for (int64_t d = 0; d < width; d += W) put_field(dwords + d * 4, kv_bits(C), shift, load_codes<C>(codes, d));
}

// The codes of all 16 tokens.
template <int32_t C> inline void put_values(unsigned char *tile, const unsigned char *const *codes, int64_t width) {
    constexpr int N = kv_per_dword(C);
    for (int t = 0; t < TILE; t += N, tile += width * 4)
        for (int64_t d = 0; d < width; d += W) {
            U dwords = load_codes<C>(codes[t], d);
            for (int r = 1; r < N; r++) dwords |= load_codes<C>(codes[t + r], d) << kv_shift(C, r);
            __builtin_memcpy(tile + d * 4, &dwords, sizeof dwords);
        }
}

inline U take_field(const unsigned char *dwords, int bits, int shift) {
    U v = load_as<U>(dwords);
    return bits < 32 ? (v >> shift) & ((1u << bits) - 1) : v;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
