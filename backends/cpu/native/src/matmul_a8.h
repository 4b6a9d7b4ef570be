// The inner loops of products of packed weights with int8 rows: rows x 32 columns at a time.
//
// A panel holds 32 columns of y, k by k, in groups with a scale (and perhaps a minimum) each. Codes are unsigned, value =
// scale * (code - zero) - minimum. Per group and row of x: the sum of code products in int32, begun at -zero * (the sum
// of the row's codes), then f32 += scale * sum, and f32 -= minimum * (the sum of the row's codes).
//
// K is cut three ways. slab: what packing cuts, 32 or 16. piece: what one integer sum covers: a group, or where x has a
// scale per 32 columns what shares both scales. unit: what one weight scale covers, but no more than fits the tile that
// codes are unpacked into.
#pragma once
#include "matmul_a8_rows.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int TILE_K = 512;        // of codes unpacked at a time: 16 KiB, half of a level 1 cache
constexpr int64_t AHEAD = 4096;   // bytes of weights that are asked for before they are needed
constexpr int VECTORS = PANEL / W;
constexpr int PART = VECTORS < 2 ? 1 : 2;  // vectors of columns in registers together
constexpr int PARTS = VECTORS / PART;

struct Cuts {
    int64_t k;                  // as packed: a multiple of the slab
    int64_t group, unit, piece;  // columns
    int64_t groups;
    int64_t code_bytes;    // of one group of a panel
    int64_t scale_bytes;   // of one group's 32 scales
    int64_t group_bytes;   // codes, scales, minimums
    int64_t panel_bytes;
    int32_t bits, slab, scale_dtype, zero;
    bool minimums, x_scales;  // x_scales: x has a scale per 32 columns, not per row
    bool one_sum;             // one group, one integer sum over all of K

    // A row of x: codes, then [pieces] where integer sums start, [units] what minimums are multiplied with, and the
    // row's scale or [pieces] of them. In bytes from the row's beginning; next row `row_bytes` on.
    int64_t starts, weights, scales, row_bytes;

    int64_t pieces() const { return k / piece; }
    int64_t units() const { return k / unit; }
};

inline int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

inline Cuts cuts_of(const Panels &w, int32_t x_group) {
    Cuts c{};
    c.k = w.k, c.group = w.group, c.groups = w.k / w.group;
    c.bits = w.bits, c.slab = int32_t(w.slab()), c.scale_dtype = w.scale_f32 ? F32 : F16, c.zero = w.zero_offset;
    c.minimums = w.has_minimum, c.x_scales = x_group != 0;
    c.one_sum = c.groups == 1 && !c.minimums && !c.x_scales;
    c.unit = c.group;
    if (c.group > TILE_K && !c.one_sum) {
        int64_t step = c.x_scales ? common_divisor(c.group, 32) : c.slab;
        for (c.unit = TILE_K / step * step; c.group % c.unit; c.unit -= step) {}
    }
    c.piece = c.x_scales ? common_divisor(c.group, 32) : c.unit;
    c.code_bytes = c.group / c.slab * w.slab_bytes();
    c.scale_bytes = w.scale_bytes(), c.group_bytes = w.group_bytes(), c.panel_bytes = w.panel_bytes();
    // Arrays that are written 16 elements at a time, hence the room; a row's beginning is not at the same place of a
    // page as the next one's.
    c.starts = whole_blocks(c.k);
    c.weights = c.starts + (c.pieces() + 16) * 4;
    c.scales = c.weights + (c.units() + 16) * 4;
    c.row_bytes = (c.scales + (c.x_scales ? c.pieces() + 16 : 16) * 4 + 63) / 64 * 64;
    if (c.row_bytes % 512 == 0) c.row_bytes += 64;
    return c;
}

inline F load_scale(const unsigned char *p, int i, int32_t dtype) {
    return dtype == F32 ? load(reinterpret_cast<const float *>(p) + i) : load_half(p + i * 2);
}

inline I broadcast(const unsigned char *four_codes) {
    int32_t v;
    std::memcpy(&v, four_codes, 4);
    return set(v);
}
template <class T> inline T element(const unsigned char *p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Sums of one slab. On AVX2 in 16 bits, which hold what 32 columns of codes below 16 come to: 8 * 2 * 15 * 127.
#if OPSOCKET_AVX2
inline I slab_sum(I) { return I{}; }
inline I add_products(I sum, I w, I a) {
    return (I)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)a));
}
template <int FACTOR> inline I with_slab(I acc, I sum) {
    return acc + (I)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(FACTOR));
}
constexpr int NIBBLES_OF_BYTE = 2;  // codes of 8 bits are two of 4
#else
inline I slab_sum(I acc) { return acc; }
inline I add_products(I sum, I w, I a) { return dot_u8s8(sum, w, a); }
template <int FACTOR> inline I with_slab(I, I sum) { return sum; }
constexpr int NIBBLES_OF_BYTE = 1;
#endif

// acc += codes of one slab of a panel, from `part` vectors on, times the rows' codes from column `column` on.
template <int MR, int BITS, int SLAB, int CHAINS, int NIBBLES>
inline __attribute__((always_inline)) void add_slab(I (&acc)[CHAINS][MR][PART], const unsigned char *w,
                                                    const unsigned char *const (&row)[MR], int64_t column) {
    constexpr int FIELDS = 8 / BITS, STEPS = SLAB / 4 / FIELDS;
#pragma GCC unroll 2
    for (int nibble = 0; nibble < NIBBLES; nibble++) {
        I sum[CHAINS][MR][PART];
        for (int chain = 0; chain < CHAINS; chain++)
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) sum[chain][r][v] = slab_sum(acc[chain][r][v]);
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; s++) {
            I packed[PART];
            for (int v = 0; v < PART; v++) packed[v] = load_as<I>(w + s * PANEL * 4 + v * W * 4);
#pragma GCC unroll 4
            for (int field = 0; field < FIELDS; field++) {
                I codes[PART];
                for (int v = 0; v < PART; v++) {
                    codes[v] = BITS == 8 ? packed[v] : (packed[v] >> (BITS * field)) & (BITS == 4 ? 0x0f0f0f0f : 0x03030303);
                    if (NIBBLES == 2) codes[v] = (packed[v] >> (4 * nibble)) & 0x0f0f0f0f;
                }
#pragma GCC unroll 8
                for (int r = 0; r < MR; r++) {
                    I a = broadcast(row[r] + column + 4 * (field * STEPS + s));
                    for (int v = 0; v < PART; v++) {
                        I &to = sum[(field * STEPS + s) % CHAINS][r][v];
                        to = add_products(to, codes[v], a);
                    }
                }
            }
        }
        for (int chain = 0; chain < CHAINS; chain++)
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++)
                    acc[chain][r][v] = nibble ? with_slab<16>(acc[chain][r][v], sum[chain][r][v])
                                              : with_slab<1>(acc[chain][r][v], sum[chain][r][v]);
    }
}

// Of one row a weight is read once and not again before all the others: asked for as data that need not stay, it leaves in
// the caches what the host needs between two steps.
inline void ask_ahead(const unsigned char *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + AHEAD + i, 0, 0);
}

// MR rows times one panel as it is packed: y f32 [MR, 32], but for the rows' own scales.
template <int MR, int BITS, int SLAB>
void packed_rows(const Cuts &c, const unsigned char *w, const unsigned char *rows, float *y) {
    constexpr int CHAINS = MR <= 2 ? 2 : 1, SLAB_BYTES = SLAB * PANEL * BITS / 8;
    const unsigned char *row[MR];
    for (int r = 0; r < MR; r++) row[r] = rows + r * c.row_bytes;
    F f[MR][VECTORS] = {};
    const int64_t unit_bytes = c.unit * PANEL * BITS / 8, code_bytes = c.code_bytes, group_bytes = c.group_bytes;
    const int64_t starts = c.starts, weights = c.weights, scales = c.scales;
    const int64_t piece_slabs = c.piece / SLAB, unit_pieces = c.unit / c.piece, group_units = c.group / c.unit;
    const bool minimums = c.minimums, x_scales = c.x_scales;
    int64_t first_column = 0, first_piece = 0, unit = 0;
    for (int64_t g = 0; g < c.groups; g++, w += group_bytes) {
        if (MR == 1) ask_ahead(w + code_bytes, group_bytes - code_bytes);
        for (int64_t u = 0; u < group_units; u++, unit++) {
            int64_t column = 0, piece = 0;
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++) {
                const unsigned char *slab = w + u * unit_bytes + part * PART * W * 4;
                F scale[PART];
                for (int v = 0; v < PART; v++) scale[v] = load_scale(w + code_bytes, (part * PART + v) * W, c.scale_dtype);
                column = first_column, piece = first_piece;
                for (int64_t p = 0; p < unit_pieces; p++, piece += 4) {
                    I acc[CHAINS][MR][PART] = {};
                    for (int r = 0; r < MR; r++)
                        for (int v = 0; v < PART; v++) acc[0][r][v] = broadcast(row[r] + starts + piece);
                    for (int64_t s = 0; s < piece_slabs; s++, slab += SLAB_BYTES, column += SLAB) {
                        if (MR == 1 && part == 0) ask_ahead(slab, SLAB_BYTES);
                        add_slab<MR, BITS, SLAB, CHAINS, BITS == 8 ? NIBBLES_OF_BYTE : 1>(acc, slab, row, column);
                    }
                    for (int r = 0; r < MR; r++)
                        for (int v = 0; v < PART; v++) {
                            I sum = acc[0][r][v];
                            if (CHAINS == 2) sum += acc[CHAINS - 1][r][v];
                            F whole = convert(sum);
                            if (x_scales) whole *= element<float>(row[r] + scales + piece);
                            f[r][part * PART + v] += whole * scale[v];
                        }
                }
                if (minimums)
                    for (int v = 0; v < PART; v++) {
                        F minimum = load_scale(w + code_bytes + c.scale_bytes, (part * PART + v) * W, c.scale_dtype);
                        for (int r = 0; r < MR; r++)
                            f[r][part * PART + v] -= minimum * element<float>(row[r] + weights + unit * 4);
                    }
            }
            first_column = column, first_piece = piece;
        }
    }
    for (int r = 0; r < MR; r++)
        for (int v = 0; v < VECTORS; v++) store(y + r * PANEL + v * W, f[r][v]);
}

// ---- many rows: codes are unpacked once into a tile of bytes [k / 4][32][4], scales into f32

struct Tile {
    alignas(64) unsigned char codes[TILE_K * PANEL];
    alignas(64) float scales[TILE_K / 16 * PANEL];
    alignas(64) float minimums[TILE_K / 16 * PANEL];
};

template <int BITS> inline void unpack_codes(const unsigned char *w, int64_t k, int slab, unsigned char *to) {
    constexpr int FIELDS = 8 / BITS;
    const int64_t field_bytes = slab / FIELDS * PANEL;
    for (int64_t column = 0; column < k; column += slab, to += slab * PANEL)
        for (int64_t i = 0; i < field_bytes; i += W * 4, w += W * 4) {
            I packed = load_as<I>(w);
            for (int field = 0; field < FIELDS; field++) {
                I codes = BITS == 8 ? packed : (packed >> (BITS * field)) & (BITS == 4 ? 0x0f0f0f0f : 0x03030303);
                std::memcpy(to + field * field_bytes + i, &codes, sizeof codes);
            }
        }
}

// Columns first .. first + columns - 1 of a panel, whole units unless there is one sum.
inline void unpack(const Cuts &c, const unsigned char *panel, int64_t first, int64_t columns, Tile &tile) {
    int64_t done = 0, unit = 0;
    while (done < columns) {
        int64_t column = first + done, group = column / c.group, within = column % c.group;
        int64_t count = c.one_sum ? columns : c.unit;
        const unsigned char *w = panel + group * c.group_bytes, *from = w + within * PANEL * c.bits / 8;
        unsigned char *to = tile.codes + done * PANEL;
        if (c.bits == 4) unpack_codes<4>(from, count, c.slab, to);
        else if (c.bits == 2) unpack_codes<2>(from, count, c.slab, to);
        else unpack_codes<8>(from, count, c.slab, to);
        for (int v = 0; v < VECTORS; v++) {
            store(tile.scales + unit * PANEL + v * W, load_scale(w + c.code_bytes, v * W, c.scale_dtype));
            if (c.minimums)
                store(tile.minimums + unit * PANEL + v * W,
                      load_scale(w + c.code_bytes + c.scale_bytes, v * W, c.scale_dtype));
        }
        done += count, unit++;
    }
}

enum Sums { SUM_PLAIN, SUM_MINIMUMS, SUM_X_SCALES, SUM_BOTH };

// y f32 [MR, 32] (+)= MR rows times `columns` columns of a tile, from column `first` of the rows on.
template <int MR, int SUMS, int SLAB, int NIBBLES>
void tile_rows(const Cuts &c, const Tile &tile, const unsigned char *rows, int64_t first, int64_t columns, float *y) {
    constexpr bool minimums = SUMS & SUM_MINIMUMS, x_scales = SUMS & SUM_X_SCALES;
    const unsigned char *row[MR];
    for (int r = 0; r < MR; r++) row[r] = rows + r * c.row_bytes;
    const int64_t starts = c.starts, weights = c.weights, scales = c.scales;
    const int64_t units = columns / c.unit, unit_pieces = x_scales ? c.unit / c.piece : 1, piece_slabs = c.piece / SLAB;
    const int64_t first_piece = first / c.piece * 4, first_unit = first / c.unit * 4;
    for (int part = 0; part < PARTS; part++) {
        F f[MR][PART] = {};
        if (first)
            for (int r = 0; r < MR; r++)
                for (int v = 0; v < PART; v++) f[r][v] = load(y + r * PANEL + (part * PART + v) * W);
        const unsigned char *codes = tile.codes + part * PART * W * 4;
        const float *scale = tile.scales + part * PART * W, *minimum = tile.minimums + part * PART * W;
        int64_t column = first, piece = first_piece, unit = first_unit;
        for (int64_t u = 0; u < units; u++, unit += 4, scale += PANEL, minimum += PANEL) {
            for (int64_t p = 0; p < unit_pieces; p++, piece += 4) {
                I acc[1][MR][PART];
                for (int r = 0; r < MR; r++)
                    for (int v = 0; v < PART; v++) acc[0][r][v] = broadcast(row[r] + starts + piece);
#pragma GCC unroll 1
                for (int64_t s = 0; s < piece_slabs; s++, codes += SLAB * PANEL, column += SLAB)
                    add_slab<MR, 8, SLAB, 1, NIBBLES>(acc, codes, row, column);
                for (int r = 0; r < MR; r++) {
                    float own = x_scales ? element<float>(row[r] + scales + piece) : 0;
                    for (int v = 0; v < PART; v++) {
                        F by = x_scales ? load(scale + v * W) * own : load(scale + v * W);
                        f[r][v] += convert(acc[0][r][v]) * by;
                    }
                }
            }
            if (minimums)
                for (int r = 0; r < MR; r++) {
                    float weight = element<float>(row[r] + weights + unit);
                    for (int v = 0; v < PART; v++) f[r][v] -= load(minimum + v * W) * weight;
                }
        }
        for (int r = 0; r < MR; r++)
            for (int v = 0; v < PART; v++) store(y + r * PANEL + (part * PART + v) * W, f[r][v]);
    }
}

// The same in integers, for one sum over all of K: y i32 [MR, 32].
template <int MR, int NIBBLES>
void tile_rows_one_sum(const Cuts &c, const Tile &tile, const unsigned char *rows, int64_t first, int64_t columns, float *y) {
    const unsigned char *row[MR];
    for (int r = 0; r < MR; r++) row[r] = rows + r * c.row_bytes;
    for (int part = 0; part < PARTS; part++) {
        const unsigned char *codes = tile.codes + part * PART * W * 4;
        I acc[1][MR][PART];
        for (int r = 0; r < MR; r++)
            for (int v = 0; v < PART; v++)
                acc[0][r][v] = first ? load_as<I>(y + r * PANEL + (part * PART + v) * W) : broadcast(row[r] + c.starts);
#pragma GCC unroll 1
        for (int64_t column = first; column < first + columns; column += 32, codes += 32 * PANEL)
            add_slab<MR, 8, 32, 1, NIBBLES>(acc, codes, row, column);
        for (int r = 0; r < MR; r++)
            for (int v = 0; v < PART; v++)
                std::memcpy(y + r * PANEL + (part * PART + v) * W, &acc[0][r][v], sizeof(I));
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
