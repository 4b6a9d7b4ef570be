// Layout "tiles16" of a KV cache: where each element lies, and what its bits stand for.
//
// A tile is 16 consecutive tokens of one KV head: the codes, then, where scales are stored per token and head, 16 f32
// scales, one per token. All of it is vectors of 16 dwords (64 bytes), little-endian; n = 32 / bits codes make a dword.
//
//   K: a dword is n consecutive dims of one token;  vector i has dims i*n .. i*n+n-1 of token t in lane t.
//   V: a dword is n consecutive tokens of one dim;  row i has tokens i*n .. i*n+n-1 of dim d in dword d,
//      and is as long as the dims of V rounded up to 16.
//
// Within a dword, code r of n begins at bit 16 r (16-bit codes), or lies in byte r % 4, at bit bits * (r / 4) of that
// byte (codes of 8 bits and less): what one byte-wise mask or shift takes out of a vector are four consecutive codes.
// Dims beyond the last, in K's last dword and V's last vector, hold the code of 0 once a token is written, or of NaN where
// that token's scale is NaN.
//
// Integers are stored as code + offset, so that 4 and 2 bits are unsigned: offset 0 (i8, signed), 8 (i4), 2 (i2).
// Floats are stored as their bits. The tile of head h and tile j of block b is number (b * heads + h) * tiles + j.
#pragma once
#include "commands_cache.h"
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int TILE = 16;  // tokens of a tile, dwords of a vector

constexpr int kv_bits(int32_t code) {
    return code == KV_F32 ? 32 : code == KV_F16 || code == KV_BF16 ? 16 : code == KV_I4 ? 4 : code == KV_I2 ? 2 : 8;
}
// Codes in a dword.
constexpr int kv_per_dword(int32_t code) { return 32 / kv_bits(code); }
constexpr int kv_offset(int32_t code) { return code == KV_I4 ? 8 : code == KV_I2 ? 2 : 0; }
// The largest code of integers, the largest finite value of f8.
constexpr float kv_max_code(int32_t code) {
    return code == KV_I8            ? 127.0f
           : code == KV_I4          ? 7.0f
           : code == KV_I2          ? 1.0f
           : code == KV_F8E4M3FN    ? 448.0f
           : code == KV_F8E4M3FNUZ  ? 240.0f
           : code == KV_F8E5M2      ? 57344.0f
                                    : INFINITY;
}
constexpr bool kv_is_integer(int32_t code) { return code >= KV_I8; }

// The bit at which code r of a dword begins.
constexpr int kv_shift(int32_t code, int r) {
    int bits = kv_bits(code);
    return bits > 8 ? bits * r : 8 * (r & 3) + bits * (r >> 2);
}

// Vectors of codes in a K tile.
constexpr int64_t k_vectors(int32_t code, int64_t dim) { return (dim + kv_per_dword(code) - 1) / kv_per_dword(code); }
// Dwords in a row of a V tile, and rows in it.
constexpr int64_t v_width(int64_t dim) { return (dim + TILE - 1) / TILE * TILE; }
constexpr int v_rows(int32_t code) { return TILE / kv_per_dword(code); }

// Bytes of codes in a tile: token_head scales begin there.
constexpr int64_t k_code_bytes(int32_t code, int64_t dim) { return k_vectors(code, dim) * 64; }
constexpr int64_t v_code_bytes(int32_t code, int64_t dim) { return v_rows(code) * v_width(dim) * 4; }

// The dword in a tile that holds dim d of token t; the bit is kv_shift(code, d % n) in K, kv_shift(code, t % n) in V.
constexpr int64_t k_dword(int32_t code, int t, int64_t d) { return d / kv_per_dword(code) * TILE + t; }
constexpr int64_t v_dword(int32_t code, int64_t dim, int t, int64_t d) {
    return t / kv_per_dword(code) * v_width(dim) + d;
}

// A tile of a plane, and the one that holds a slot (block * block_size + offset; the token in it is slot % TILE).
inline unsigned char *tile(const KVTiles &x, int64_t heads, int64_t tiles, int64_t block, int64_t head, int64_t j) {
    return x.data + ((block * heads + head) * tiles + j) * x.tile_bytes;
}
inline unsigned char *tile_of_slot(const KVTiles &x, int64_t heads, int64_t tiles, int64_t head, int64_t slot) {
    int64_t j = slot / TILE;
    return tile(x, heads, tiles, j / tiles, head, j % tiles);
}

// The 16 stored scales of a tile (SCALE_TOKEN_HEAD only).
inline float *k_scales(const KVTiles &k, unsigned char *tile) {
    return reinterpret_cast<float *>(tile + k_code_bytes(k.code, k.dim));
}
inline float *v_scales(const KVTiles &v, unsigned char *tile) {
    return reinterpret_cast<float *>(tile + v_code_bytes(v.code, v.dim));
}

// ---- codes, a vector at a time; a code stands in the low bits of its lane

// Code r of each dword.
template <int32_t C> inline U kv_field(U dwords, int r) {
    if constexpr (C == KV_F32) return dwords;
    else return (dwords >> kv_shift(C, r)) & ((1u << kv_bits(C)) - 1);
}

inline F halves(U bits) {
    UH h = __builtin_convertvector(bits, UH);
    return load_half(&h);
}

// What codes stand for before a scale is applied. Exact.
template <int32_t C> inline F kv_decode(U code) {
    if constexpr (C == KV_F32) return (F)code;
    else if constexpr (C == KV_F16) return halves(code);
    else if constexpr (C == KV_BF16) return (F)(code << 16);
    else if constexpr (C == KV_I8) return convert((I)(code << 24) >> 24);
    else if constexpr (C == KV_I4 || C == KV_I2) return convert((I)code - kv_offset(C));
    else if constexpr (C == KV_F8E5M2) return halves(code << 8);
    else {
        // As a half with one exponent bit more, subnormals included; the exponents' biases differ by 8, or 7.
        F value = halves((code & 0x80) << 8 | (code & 0x7f) << 7) * (C == KV_F8E4M3FN ? 256.0f : 128.0f);
        I nan = C == KV_F8E4M3FN ? (I)((code & 0x7f) == 0x7f) : (I)(code == 0x80);
        return nan ? set(NAN) : value;
    }
}

// The codes of f32 values that are divided by their scale already: to nearest, ties to even. Quantized codes saturate;
// NaN is the code 0 of integers and stays NaN in floats.
template <int32_t C> inline U kv_encode(F x) {
    if constexpr (C == KV_F32) return (U)x;
    else if constexpr (C == KV_F16 || C == KV_BF16) {
        UH h;
        if constexpr (C == KV_F16) store_half(&h, x);
        else store_bf16(&h, x);
        return __builtin_convertvector(h, U);
    } else {
        const F top = set(kv_max_code(C));
        F clamped = x > top ? top : x < -top ? -top : x;
        if constexpr (kv_is_integer(C)) {
            I code = round(clamped == clamped ? clamped : set(0.0f)) + kv_offset(C);
            return (U)code & ((1u << kv_bits(C)) - 1);
        } else {
            constexpr int mantissa = C == KV_F8E5M2 ? 2 : 3;
            constexpr int bias = C == KV_F8E5M2 ? 15 : C == KV_F8E4M3FNUZ ? 8 : 7;
            U bits = (U)clamped, sign = bits >> 24 & 0x80, size = bits & 0x7fffffff;
            // Normal: round off the low bits of the f32 and change the exponent's bias.
            constexpr int drop = 23 - mantissa;
            U normal = ((size + ((1u << (drop - 1)) - 1) + (size >> drop & 1)) >> drop) - ((127u - bias) << mantissa);
            // Subnormal: adding 2^(23 + e), e the exponent of the smallest, leaves multiples of it, rounded.
            constexpr uint32_t magic = uint32_t(127 + 23 + 1 - bias - mantissa) << 23;
            U small = (U)((F)size + (F)(U{} + magic)) - magic;
            constexpr uint32_t least = uint32_t(127 + 1 - bias) << 23;
            U code = (I)size < (I)(U{} + least) ? small : normal;
            if constexpr (C == KV_F8E4M3FNUZ) {
                code = code == 0 ? code : code | sign;  // it has one zero, and NaN where -0 would be
                return clamped == clamped ? code : U{} + 0x80;
            }
            return (clamped == clamped ? code : U{} + 0x7f) | sign;
        }
    }
}

// Calls f(KVCodeOf<code>()) for the code that a cache has.
template <int32_t C> struct KVCodeOf {
    static constexpr int32_t value = C;
};
template <class Fn> inline void with_code(int32_t code, const Fn &f) {
    switch (code) {
        case KV_F32: return f(KVCodeOf<KV_F32>());
        case KV_F16: return f(KVCodeOf<KV_F16>());
        case KV_BF16: return f(KVCodeOf<KV_BF16>());
        case KV_F8E4M3FN: return f(KVCodeOf<KV_F8E4M3FN>());
        case KV_F8E4M3FNUZ: return f(KVCodeOf<KV_F8E4M3FNUZ>());
        case KV_F8E5M2: return f(KVCodeOf<KV_F8E5M2>());
        case KV_I8: return f(KVCodeOf<KV_I8>());
        case KV_I4: return f(KVCodeOf<KV_I4>());
        case KV_I2: return f(KVCodeOf<KV_I2>());
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
