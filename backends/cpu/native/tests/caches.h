// Caches of layout "tiles16", filled and read code by code as tiles.h describes them, with what codes stand for in f64.
#pragma once
#include "arrays.h"
#include "tiles.h"

namespace test {

// What a code stands for before a scale, by the definitions of the formats.
inline double value_of(int32_t code, uint32_t bits) {
    using namespace opsocket;
    auto small_float = [&](int exponent_bits, int mantissa_bits, int bias) {
        const int mantissa = int(bits & ((1u << mantissa_bits) - 1));
        const int exponent = int(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
        const bool negative = bits >> (mantissa_bits + exponent_bits) & 1;
        const double x = exponent ? std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
                                  : std::ldexp(mantissa, 1 - bias - mantissa_bits);
        return negative ? -x : x;
    };
    switch (code) {
        case KV_F16:
            return OPSOCKET_LEVEL::half_to_float(uint16_t(bits));
        case KV_BF16:
            return OPSOCKET_LEVEL::bf16_to_float(uint16_t(bits));
        case KV_F8E4M3FN:
            return (bits & 0x7f) == 0x7f ? NAN : small_float(4, 3, 7);
        case KV_F8E4M3FNUZ:
            return bits == 0x80 ? NAN : small_float(4, 3, 8);
        case KV_F8E5M2:
            return (bits & 0x7f) > 0x7c ? NAN : (bits & 0x7f) == 0x7c ? INFINITY : small_float(5, 2, 15);
        case KV_I8:
            return int8_t(bits);
        case KV_I4:
            return int(bits) - 8;
        case KV_I2:
            return int(bits) - 2;
        default: {
            float x;
            std::memcpy(&x, &bits, 4);
            return double(x);
        }
    }
}

// A code that some token may have: finite, and no lowest integer, which is never written.
inline uint32_t some_code(Random &random, int32_t code) {
    using namespace opsocket;
    if (code == KV_F32) {
        const float x = float(random.normal());
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        return bits;
    }
    if (code == KV_F16) return OPSOCKET_LEVEL::float_to_half(float(random.normal()));
    if (code == KV_BF16) return OPSOCKET_LEVEL::float_to_bf16(float(random.normal()));
    const int bits = OPSOCKET_LEVEL::kv_bits(code);
    for (;;) {
        const uint32_t found = uint32_t(random.below(1 << bits));
        const double x = value_of(code, found);
        if (std::isfinite(x) &&
            std::fabs(x) <= (OPSOCKET_LEVEL::kv_is_integer(code) ? double(OPSOCKET_LEVEL::kv_max_code(code)) : 16))
            return found;
    }
}

struct KVFormat {
    int32_t code, granularity, scale_dtype;
};

// Keys or values of a cache in memory of its own. Every byte is 0xff at first, which is NaN where that is a float.
class Tiles {
   public:
    opsocket::KVTiles facts{};
    const int64_t heads, tiles, blocks;

    Tiles(Random &random, const KVFormat &format, bool keys, int64_t dim, int64_t heads, int64_t tiles, int64_t blocks)
        : heads(heads), tiles(tiles), blocks(blocks), keys_(keys), scale_(0), bytes_(0, 0) {
        using namespace opsocket;
        facts.code = format.code, facts.granularity = format.granularity, facts.scale_dtype = format.scale_dtype;
        facts.dim = int32_t(dim);
        codes_ = keys ? OPSOCKET_LEVEL::k_code_bytes(format.code, dim) : OPSOCKET_LEVEL::v_code_bytes(format.code, dim);
        facts.tile_bytes = codes_ + (format.granularity == SCALE_TOKEN_HEAD ? 64 : 0);
        bytes_ = Bytes(blocks * heads * tiles * facts.tile_bytes, 0xff);
        facts.data = bytes_.data();
        const int64_t scales = format.granularity == SCALE_TENSOR    ? 1
                               : format.granularity == SCALE_HEAD    ? heads
                               : format.granularity == SCALE_CHANNEL ? heads * dim
                                                                     : 0;
        scale_ = Array<float>(scales);
        for (int64_t i = 0; i < scales; i++) scale_[i] = float(0.02 + 0.05 * random.uniform());
        facts.scale = scales ? scale_.data() : nullptr;
    }

    int64_t slots() const { return blocks * tiles * opsocket::OPSOCKET_LEVEL::TILE; }
    Bytes &bytes() { return bytes_; }

    // Code of dim d of a token: its dword and bit are those of tiles.h. Dims up to `padded` can be reached.
    int64_t padded() const {
        const int n = opsocket::OPSOCKET_LEVEL::kv_per_dword(facts.code);
        return keys_ ? (facts.dim + n - 1) / n * n : (facts.dim + 15) / 16 * 16;
    }
    uint32_t code(int64_t slot, int64_t head, int64_t d) const {
        int shift;
        uint32_t dword;
        std::memcpy(&dword, place(slot, head, d, shift), 4);
        return dword >> shift & mask();
    }
    void set_code(int64_t slot, int64_t head, int64_t d, uint32_t code) {
        int shift;
        unsigned char *at = place(slot, head, d, shift);
        uint32_t dword;
        std::memcpy(&dword, at, 4);
        dword = (dword & ~(mask() << shift)) | code << shift;
        std::memcpy(at, &dword, 4);
    }
    float *stored_scale(int64_t slot, int64_t head) const {
        return reinterpret_cast<float *>(tile(slot, head) + codes_) + slot % 16;
    }
    float scale(int64_t slot, int64_t head, int64_t d) const {
        switch (facts.granularity) {
            case opsocket::SCALE_TENSOR:
                return scale_[0];
            case opsocket::SCALE_HEAD:
                return scale_[head];
            case opsocket::SCALE_CHANNEL:
                return d < facts.dim ? scale_[head * facts.dim + d] : 1.0f;
            case opsocket::SCALE_TOKEN_HEAD:
                return *stored_scale(slot, head);
            default:
                return 1;
        }
    }
    double value(int64_t slot, int64_t head, int64_t d) const {
        return value_of(facts.code, code(slot, head, d)) * double(scale(slot, head, d));
    }

    // A token of some values in every head, dims beyond the last with the code of 0.
    void fill(Random &random, int64_t slot) {
        for (int64_t head = 0; head < heads; head++) {
            if (facts.granularity == opsocket::SCALE_TOKEN_HEAD)
                *stored_scale(slot, head) = float(0.02 + 0.05 * random.uniform());
            for (int64_t d = 0; d < padded(); d++)
                set_code(slot, head, d, d < facts.dim ? some_code(random, facts.code) : zero());
        }
    }
    uint32_t zero() const { return uint32_t(opsocket::OPSOCKET_LEVEL::kv_offset(facts.code)); }

   private:
    bool keys_;
    int64_t codes_ = 0;
    Array<float> scale_;
    Bytes bytes_;

    uint32_t mask() const { return uint32_t((uint64_t(1) << opsocket::OPSOCKET_LEVEL::kv_bits(facts.code)) - 1); }
    unsigned char *tile(int64_t slot, int64_t head) const {
        const int64_t block = slot / (tiles * 16), j = slot / 16 % tiles;
        return bytes_.data() + ((block * heads + head) * tiles + j) * facts.tile_bytes;
    }
    unsigned char *place(int64_t slot, int64_t head, int64_t d, int &shift) const {
        const int bits = opsocket::OPSOCKET_LEVEL::kv_bits(facts.code), n = 32 / bits, t = int(slot % 16);
        const int r = int(keys_ ? d % n : t % n);
        shift = bits > 8 ? bits * r : r % 4 * 8 + r / 4 * bits;
        const int64_t width = (facts.dim + 15) / 16 * 16;
        return tile(slot, head) + (keys_ ? d / n * 16 + t : t / n * width + d) * 4;
    }
};

// Formats of every code, of a granularity that it may have.
inline KVFormat some_format(Random &random, int32_t code) {
    const bool integer = opsocket::OPSOCKET_LEVEL::kv_is_integer(code);
    if (opsocket::OPSOCKET_LEVEL::kv_bits(code) > 8) return {code, opsocket::SCALE_NONE, opsocket::F32};
    return {code, int32_t(integer ? 1 + random.below(4) : random.below(5)), int32_t(random.below(2))};
}

struct CachePair {
    Tiles k, v;
    opsocket::KVTilesPair facts() const { return {k.facts, v.facts, k.heads, k.tiles}; }
};

}  // namespace test
