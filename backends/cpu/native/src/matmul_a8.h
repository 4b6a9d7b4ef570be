// The inner loops of products of packed weights with int8 rows: rows x 32 columns at a time.
//
// A panel holds 32 columns of y, k by k, in groups with a scale (and perhaps a minimum) each. Codes are unsigned, value =
// scale * (code - zero) - minimum. Per group and row of x: the sum of code products in int32, begun at -zero * (the sum
// of the row's codes), then f32 += scale * sum, and f32 -= minimum * (the sum of the row's codes).
//
// K is cut four ways. block: what packing repeats, a group, or a super-block where its scales have units. slab: what
// packing cuts, 32 or 16. piece: what one integer sum covers: a group, or where x has a
// scale per 32 columns what shares both scales. unit: what one weight scale covers, but no more than fits the tile that
// codes are unpacked into.
#pragma once
#include <algorithm>
#include <type_traits>

#include "matmul_a8_rows.h"
#include "panel_products.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int TILE_K = 576;        // of codes unpacked at a time: 18 KiB, and scales, of a level 1 cache's 32 or 48

struct Cuts {
    int64_t k;                  // as packed: a multiple of the slab
    int64_t group, unit, piece;  // columns
    int64_t groups;
    int64_t code_bytes;    // of one group of a panel
    int64_t scale_bytes;   // of one group's 32 scales
    int64_t group_bytes;   // codes, scales, minimums
    int64_t block, block_bytes, head_bytes;
    int64_t panel_bytes;
    int32_t bits, slab, scale_dtype, zero;  // bits: or BY_TABLE
    bool is_headed;  // scales are in heads of super-blocks
    bool minimums, x_scales;  // x_scales: x has a scale per 32 columns, not per row
    bool one_sum;             // one group, one integer sum over all of K
    bool is_wide;             // codes too long for sums in 16 bits: in a tile they are numbers of 16 bits, and so are those
                              // of rows that meet it; else rows are split into two digits

    // A row of x: codes, then [pieces] where integer sums start, [units] what minimums are multiplied with, and the
    // row's scale or [pieces] of them. In bytes from the row's beginning; next row `row_bytes` on.
    int64_t starts, weights, scales, row_bytes;
    int64_t pieces, units;  // of it

    // Bytes from a split row's lower digits to the upper ones.
    int64_t to_upper() const { return starts / 2; }

    // No more columns than this are in a tile: those of 16 bits take no more room than the others, or are one super-block.
    int64_t tile_k() const { return !is_wide ? TILE_K : std::max<int64_t>(TILE_K / 2, is_headed ? block : 0); }
};

inline int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

inline Cuts cuts_of(const Panels &w, int32_t x_group) {
    Cuts c{};
    c.k = w.k, c.group = w.group, c.groups = w.k / w.group;
    c.bits = is_by_table(w) ? BY_TABLE : w.bits, c.slab = int32_t(w.slab()), c.scale_dtype = w.scale_f32 ? F32 : F16, c.zero = w.zero_offset;
    c.minimums = w.has_minimum, c.x_scales = x_group != 0;
    c.one_sum = c.groups == 1 && !c.minimums && !c.x_scales && c.slab == 32 && low_bits(c.bits) == c.bits;
    c.is_wide = HAS_SHORT_SUMS && (c.bits == 8 || c.bits == BY_TABLE);
    c.unit = c.group;
    if (c.group > c.tile_k() && !c.one_sum) {
        int64_t step = c.x_scales ? common_divisor(c.group, 32) : c.slab;
        for (c.unit = c.tile_k() / step * step; c.group % c.unit; c.unit -= step) {}
    }
    c.piece = c.x_scales ? common_divisor(c.group, 32) : c.unit;
    c.pieces = c.k / c.piece, c.units = c.k / c.unit;
    c.code_bytes = w.code_bytes(), c.scale_bytes = w.scale_bytes(), c.group_bytes = w.group_bytes();
    c.block = w.block(), c.block_bytes = w.block_bytes(), c.head_bytes = w.head_bytes(), c.panel_bytes = w.panel_bytes();
    c.is_headed = w.super != 0;
    // Arrays that are written 16 elements at a time, hence the room; a row's beginning is not at the same place of a
    // page as the next one's.
    c.starts = whole_blocks(c.k) * (c.is_wide ? 2 : 1);
    c.weights = c.starts + (c.pieces + 16) * 4;
    c.scales = c.weights + (c.units + 16) * 4;
    c.row_bytes = (c.scales + (c.x_scales ? c.pieces + 16 : 16) * 4 + 63) / 64 * 64;
    if (c.row_bytes % 512 == 0) c.row_bytes += 64;
    return c;
}

inline F load_scale(const unsigned char *p, int i, int32_t dtype) {
    return dtype == F32 ? load(reinterpret_cast<const float *>(p) + i) : load_half(p + i * 2);
}

// Memory to ask for while several rows are multiplied: `share` bytes with each part of them, before it or `lines` cache
// lines for each slab, from `next` to `stop`.
struct Fetch {
    const unsigned char *next, *stop;
    int64_t share, lines;
    bool before;

    void begin() {
        stop = next + share;
        if (before) all();
    }
    void end() { next = stop; }
    void some() {
        if (next < stop)
            for (int64_t i = 0; i < lines; i++, next += 64) prefetch(next);
    }
    void all() {
        for (; next < stop; next += 64) prefetch(next);
    }
};

// Units of a panel that stand one behind the other, as they are packed or in a tile.
struct Units {
    const unsigned char *codes;        // of the first; where there are heads, the first's block
    int64_t count, group_units, left;  // units; of one scale; of the first one's scale, after it
    int64_t scale_bytes, tail_bytes;   // a group's scales; these and its minimums
    int64_t bytes;                     // of a unit's codes
    int32_t scale_dtype;
    int64_t block_units;               // that share a head
    const uint8_t *table;              // that codes are looked up in, or null
    int64_t column, start, weight, scale;  // where in a row of x their codes, starts, weights and scales begin, in bytes
};

// Where sums go: y f32 [rows, 32], or, where K ends and no column of the panel is missing, y of the product.
struct Sink {
    float *sums;       // read where K does not begin, written where it does not end
    unsigned char *y;  // null: there is more of K
    int64_t y_stride;  // elements
    int32_t y_dtype;
    F add[VECTORS];

    // To the rows after these.
    void pass(int64_t rows) {
        sums += rows * PANEL;
        if (y) y += rows * y_stride * (y_dtype == F32 ? 4 : 2);
    }
};

enum Sums { SUM_PLAIN, SUM_MINIMUMS, SUM_X_SCALES, SUM_BOTH };

// Where scales are: behind their group, in the head of their super-block, or as floats behind each unit of a tile.
enum Place { AT_GROUP, IN_HEAD, IN_TILE };

#if OPSOCKET_SHORT_SUMS
constexpr int chains_of(int) { return 1; }  // adding up takes a cycle
#else
constexpr int chains_of(int rows) { return rows <= 2 ? 2 : 1; }
#endif
constexpr int MOST_GROUPS = 16;  // of a super-block

// Its scales and minimums as floats.
struct Head {
    alignas(64) float scales[MOST_GROUPS * 2 * PANEL];
};
struct Nothing {};

// Sums of `part` vectors of MR rows, as y has them. Not inlined: all loops of so many rows have the same.
template <bool X_SCALES, int MR, int PART>
__attribute__((noinline)) void give(const Cuts &c, const Sink &to, int part, const unsigned char *rows,
                                                const F (&f)[MR][PART]) {
    auto as = [&](auto type) {
        for (int r = 0; r < MR; r++)
            for (int v = 0; v < PART; v++) {
                const F add = to.add[part * PART + v];
                const F y = X_SCALES ? f[r][v] + add
                                     : f[r][v] * element<float>(rows + r * c.row_bytes + c.scales) + add;
                store_t<decltype(type)::value>(to.y, r * to.y_stride + (part * PART + v) * W, y);
            }
    };
    if (to.y_dtype == F32) as(std::integral_constant<int32_t, F32>{});
    else if (to.y_dtype == F16) as(std::integral_constant<int32_t, F16>{});
    else as(std::integral_constant<int32_t, BF16>{});
}

// `count` times MR rows times some units. In a tile each of these has scales of its own, in f32.
template <int MR, int SUMS, int BITS, int SLAB, int PLACE>
void rows_by_units(const Cuts &c, const Units &units, const unsigned char *rows, int64_t count, Fetch &fetch, Sink &to) {
    constexpr bool minimums = SUMS & SUM_MINIMUMS, x_scales = SUMS & SUM_X_SCALES;
    constexpr bool in_tile = PLACE == IN_TILE, as_floats = PLACE != AT_GROUP;
    constexpr int CHAINS = chains_of(MR), SLAB_BYTES = SLAB * PANEL * (in_tile ? 8 : stored_bits(BITS)) / 8;
    constexpr int PART = part_of(MR), PARTS = VECTORS / PART;
    constexpr bool FROM_ZERO = minimums && as_floats;  // such codes have no offset: panel.h
    constexpr int SCALES = PANEL * (minimums ? 2 : 1);
    std::conditional_t<PLACE == IN_HEAD, Head, Nothing> head;
    const I table = BITS == BY_TABLE ? repeated(units.table) : I{};
    // With scales of x a piece is one; to say so costs several rows registers.
    const int64_t piece_slabs = x_scales && MR == 1 ? 1 : c.piece / SLAB;
    const int64_t unit_pieces = x_scales ? c.unit / c.piece : 1;
    const int64_t unit_bytes = units.bytes, group_units = as_floats ? 1 : units.group_units, row_bytes = c.row_bytes, to_upper = c.to_upper();
    const int64_t scale_bytes = as_floats ? PANEL * 4 : units.scale_bytes;
    const int64_t tail_bytes = in_tile ? SCALES * 4 : units.tail_bytes;
    const int32_t dtype = as_floats ? F32 : units.scale_dtype;
    for (; count; count--, rows += MR * row_bytes, to.pass(MR), fetch.end()) {
        fetch.begin();
#pragma GCC unroll 1
        for (int part = 0; part < PARTS; part++) {
            F f[MR][PART];
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++)
                    f[r][v] = units.column ? load(to.sums + r * PANEL + (part * PART + v) * W) : set(0.0f);
            const unsigned char *w = units.codes + part * PART * W * 4;
            const unsigned char *x = rows + units.column, *start = rows + units.start;
            const unsigned char *weight = rows + units.weight, *own = rows + units.scale;
            int64_t left = as_floats ? 0 : units.left;
            for (int64_t u = units.count; u; u--) {
                const unsigned char *at;  // of the scales
                if constexpr (PLACE == IN_HEAD) {
                    if (left-- == 0) {
                        if (MR == 1 && part == 0) ask_ahead(w, c.head_bytes);
                        expand_head<minimums, PART>(w - part * PART * W * 4, units.block_units, part * PART, head.scales, SCALES);
                        left = units.block_units - 1, w += c.head_bytes;
                    }
                    at = reinterpret_cast<const unsigned char *>(head.scales + (units.block_units - 1 - left) * SCALES);
                } else {
                    at = w + left * unit_bytes + unit_bytes - part * PART * W * 4;
                }
                if (minimums) {
                    F minimum[PART];
                    for (int v = 0; v < PART; v++) minimum[v] = load_scale(at + scale_bytes, (part * PART + v) * W, dtype);
                    for (int r = 0; r < MR; r++)
                        for (int v = 0; v < PART; v++) f[r][v] -= minimum[v] * element<float>(of_row(weight, r, row_bytes));
                    weight += 4;
                }
                for (int64_t p = unit_pieces; p; p--) {
                    I acc[CHAINS][MR][PART];
                    for (int chain = 0; chain < CHAINS; chain++)
                        for (int r = 0; r < MR; r++)
                            for (int v = 0; v < PART; v++)
                                acc[chain][r][v] = chain || FROM_ZERO ? I{} : broadcast(of_row(start, r, row_bytes));
                    start += 4;
#pragma GCC unroll 1
                    for (int64_t s = piece_slabs; s; s--, w += SLAB_BYTES, x += SLAB) {
                        if (MR == 1 && part == 0) ask_ahead(w, SLAB_BYTES);
                        if (MR > 1 && !in_tile) fetch.some();
                        add_slab<MR, BITS, SLAB, CHAINS, in_tile>(acc, w, x, row_bytes, to_upper, table);
                    }
                    F scale[PART];
                    for (int v = 0; v < PART; v++) scale[v] = load_scale(at, (part * PART + v) * W, dtype);
                    for (int r = 0; r < MR; r++)
                        for (int v = 0; v < PART; v++) {
                            F whole = convert(CHAINS == 2 ? acc[0][r][v] + acc[CHAINS - 1][r][v] : acc[0][r][v]);
                            // A factor that needs no sum, so that it is ready when the sum is.
                            F factor = x_scales ? scale[v] * element<float>(of_row(own, r, row_bytes)) : scale[v];
                            f[r][v] += whole * factor;
                        }
                    own += 4;
                }
                if (PLACE != IN_HEAD && (in_tile || left-- == 0)) {
                    if (MR == 1 && part == 0) ask_ahead(w, tail_bytes);
                    left = group_units - 1, w += tail_bytes;
                }
            }
            if (in_tile && to.y) {
                F all[MR][PART];  // f itself would be written for every unit, if it had to be in memory after them
                for (int r = 0; r < MR; r++)
                    for (int v = 0; v < PART; v++) all[r][v] = f[r][v];
                give<x_scales>(c, to, part, rows, all);
                continue;
            }
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) store(to.sums + r * PANEL + (part * PART + v) * W, f[r][v]);
        }
    }
}

// The same in integers, for one sum over all of K: sums i32 [MR, 32].
template <int MR, int BITS, bool TILE>
void rows_by_codes(const Cuts &c, const Units &units, const unsigned char *rows, int64_t count, Fetch &fetch, Sink &to) {
    constexpr int CHAINS = chains_of(MR), SLAB_BYTES = 32 * PANEL * (TILE ? 8 : BITS) / 8;
    constexpr int PART = part_of(MR), PARTS = VECTORS / PART;
    for (; count; count--, rows += MR * c.row_bytes, to.pass(MR), fetch.end()) {
        fetch.begin();
#pragma GCC unroll 1
        for (int part = 0; part < PARTS; part++) {
            const unsigned char *w = units.codes + part * PART * W * 4;
            I acc[CHAINS][MR][PART];
            for (int chain = 0; chain < CHAINS; chain++)
                for (int r = 0; r < MR; r++)
                    for (int v = 0; v < PART; v++)
                        acc[chain][r][v] = chain ? I{}
                                           : units.column ? load_as<I>(to.sums + r * PANEL + (part * PART + v) * W)
                                                          : broadcast(of_row(rows + c.starts, r, c.row_bytes));
            const unsigned char *x = rows + units.column;
#pragma GCC unroll 1
            for (int64_t u = units.count; u; u--, x += 32, w += SLAB_BYTES) {
                if (MR == 1 && part == 0) ask_ahead(w, SLAB_BYTES);
                if (MR > 1 && !TILE) fetch.some();
                add_slab<MR, BITS, 32, CHAINS, TILE>(acc, w, x, c.row_bytes, c.to_upper(), I{});
            }
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) {
                    I sum = CHAINS == 2 ? acc[0][r][v] + acc[CHAINS - 1][r][v] : acc[0][r][v];
                    std::memcpy(to.sums + r * PANEL + (part * PART + v) * W, &sum, sizeof sum);
                }
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
