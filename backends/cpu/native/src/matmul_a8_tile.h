// Many rows: units are unpacked once into a tile, codes as bytes [k / 4][32][4] (or as matmul_a8_wide.h has them), scales
// and minimums as f32, which all rows then meet there.
#pragma once
#include "matmul_a8.h"
#include "matmul_a8_wide.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

struct Tile {
    alignas(64) unsigned char bytes[TILE_K * PANEL * (HAS_SHORT_SUMS ? 2 : 1) + TILE_K / 16 * 2 * PANEL * 4];
};

// zero: what tiles of AMX, of signed bytes, have less.
template <int BITS, int SLAB>
inline void unpack_slab(const unsigned char *w, unsigned char *to, [[maybe_unused]] I table, [[maybe_unused]] I zero) {
#pragma GCC unroll 8
    for (int t = 0; t < SLAB / 4; t++)
        for (int v = 0; v < VECTORS; v++) {
            I codes = codes_of_step<stored_bits(BITS), SLAB>(w, t, v);
            if constexpr (BITS == BY_TABLE) codes = look_up(table, codes);
#if OPSOCKET_AMX
            codes = (I)_mm512_sub_epi8((__m512i)codes, (__m512i)zero);
#endif
            std::memcpy(to + t * PANEL * 4 + v * W * 4, &codes, sizeof codes);
        }
}

// Units in a tile, each with scales of its own.
template <int BITS, int SLAB> void unpack_as(const Cuts &c, const Units &from, Tile &tile) {
    constexpr bool IS_WIDE = HAS_SHORT_SUMS && (BITS == 8 || BITS == BY_TABLE);
    constexpr int SLAB_BYTES = SLAB * PANEL * stored_bits(BITS) / 8, CODE = IS_WIDE ? 2 : 1;
    const I table = from.table ? repeated(from.table) : I{};
    const I zero = set(int32_t(uint32_t(c.zero) * 0x01010101u));
    const int64_t columns = c.one_sum ? from.count * 32 : c.unit;
    const unsigned char *w = from.codes;
    unsigned char *to = tile.bytes;
    int64_t left = from.left, until_head = 0;
    for (int64_t u = c.one_sum ? 1 : from.count; u; u--) {
        if (c.is_headed && until_head-- == 0) {
            float *scales = reinterpret_cast<float *>(to + columns * PANEL * CODE);
            const int64_t stride = (c.minimums ? 2 : 1) * PANEL + columns * PANEL * CODE / 4;
            if (c.minimums) expand_head<true, VECTORS>(w, from.block_units, 0, scales, stride);
            else expand_head<false, VECTORS>(w, from.block_units, 0, scales, stride);
            until_head = from.block_units - 1, w += c.head_bytes;
        }
        const unsigned char *scales = w + (left + 1) * from.bytes;
        for (int64_t column = 0; column < columns; column += SLAB, w += SLAB_BYTES, to += SLAB * PANEL * CODE) {
#if OPSOCKET_SHORT_SUMS
            if constexpr (IS_WIDE) {
                unpack_wide<BITS, SLAB>(w, to, table, c.zero);
                continue;
            }
#endif
            unpack_slab<BITS, SLAB>(w, to, table, zero);
        }
        if (c.one_sum) break;
        for (int all = c.minimums ? 2 : 1; all; all--, scales += from.scale_bytes, to += PANEL * 4)
            for (int v = 0; v < VECTORS && !c.is_headed; v++)
                store(reinterpret_cast<float *>(to) + v * W, load_scale(scales, v * W, from.scale_dtype));
        if (!c.is_headed && left-- == 0) left = from.group_units - 1, w += from.tail_bytes;
    }
}

inline Units unpack(const Panels &w, const Cuts &c, const Units &from, Tile &tile) {
    if (c.bits == BY_TABLE) unpack_as<BY_TABLE, 32>(c, from, tile);
    else by_form(w, [&](auto bits, auto slab) { unpack_as<decltype(bits)::value, decltype(slab)::value>(c, from, tile); });
    Units units = from;
    units.codes = tile.bytes, units.bytes = c.unit * PANEL;
    return units;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
