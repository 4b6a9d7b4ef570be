// One token of one head in and out of a tile, and how the tokens of a batch are shared among threads.
#pragma once
#include <algorithm>

#include "pool.h"
#include "tiles.h"

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

// Codes of one token's dims, as `store_codes` leaves them, into lane t of a K tile; and back.
template <int32_t C> inline void put_key(unsigned char *tile, int t, const void *codes, int64_t vectors) {
    const uint32_t *from = static_cast<const uint32_t *>(codes);
    uint32_t *to = reinterpret_cast<uint32_t *>(tile) + t;
    for (int64_t i = 0; i < vectors; i++) {
        uint32_t dword;
        if constexpr (C == KV_I4) dword = from[2 * i] | from[2 * i + 1] << 4;
        else if constexpr (C == KV_I2)
            dword = from[4 * i] | from[4 * i + 1] << 2 | from[4 * i + 2] << 4 | from[4 * i + 3] << 6;
        else dword = from[i];
        to[i * TILE] = dword;
    }
}
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

// A field of some dwords of a V tile.
inline void put_field(unsigned char *dwords, int bits, int shift, U codes) {
    if (bits < 32) {
        U mask = U{} + (((1u << bits) - 1) << shift);
        codes = (load_as<U>(dwords) & ~mask) | (codes << shift & mask);
    }
    __builtin_memcpy(dwords, &codes, sizeof codes);
}
inline U take_field(const unsigned char *dwords, int bits, int shift) {
    U v = load_as<U>(dwords);
    return bits < 32 ? (v >> shift) & ((1u << bits) - 1) : v;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
