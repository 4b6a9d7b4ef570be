// Many rows by tiles of AMX, 16 rows by 16 columns of a panel at a time, from codes that were unpacked (matmul_a8_tile.h).
// The sums of 32 bytes of k take 16 cycles, as those of 64 do, and what follows for each of their 256 numbers another 16 to 24:
// they are stored, converted, multiplied with their scales and added up in f32, in the order in which VNNI's loops have it.
#pragma once
#include "amx.h"
#include "matmul_a8_tile.h"
#include "transpose.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int HIGH = 16;  // rows of a tile

#if OPSOCKET_AMX
// k of a product: as much of a piece as a tile holds.
inline int64_t tile_step(const Cuts &c) { return c.one_sum || c.piece % 64 == 0 ? 64 : c.piece % 32 == 0 ? 32 : 16; }

// Rows as 16 of them need them together: [row / 16][k / step][row % 16][step] of codes, which are tiles so, and of what is
// beside them [row / 16][piece or unit][row % 16], zeros for rows that there are not.
struct HighRows {
    const unsigned char *codes;
    const float *scales, *weights;

    // As there is room for.
    static int64_t most(const Cuts &c, size_t bytes) {
        return int64_t(bytes) / (HIGH * (whole_blocks(c.k) + 4 * (c.pieces + c.units))) * HIGH;
    }

    HighRows(const Cuts &c, const unsigned char *rows, int64_t count, unsigned char *memory) : codes(memory) {
        const int64_t step = tile_step(c), width = whole_blocks(c.k);
        for (int64_t r = 0; r < count; r++) {
            unsigned char *to = memory + r / HIGH * HIGH * width + r % HIGH * step;
            const unsigned char *from = rows + r * c.row_bytes;
            auto copy = [&](auto size) {
                for (int64_t k = 0; k < width; k += size, to += HIGH * size, from += size) std::memcpy(to, from, size);
            };
            if (step == 64) copy(std::integral_constant<int64_t, 64>{});
            else if (step == 32) copy(std::integral_constant<int64_t, 32>{});
            else copy(std::integral_constant<int64_t, 16>{});
        }
        float *floats = reinterpret_cast<float *>(memory + (count + HIGH - 1) / HIGH * HIGH * width);
        scales = floats;
        if (c.x_scales) floats = gather(rows + c.scales, c.row_bytes, count, c.pieces, floats);
        weights = floats;
        if (c.minimums) gather(rows + c.weights, c.row_bytes, count, c.units, floats);
    }

   private:
    static float *gather(const unsigned char *from, int64_t stride, int64_t rows, int64_t each, float *to) {
        for (int64_t first = 0; first < rows; first += HIGH, to += each * HIGH)
            for (int64_t i = 0; i < each; i += HIGH) {
                alignas(64) uint32_t block[HIGH][HIGH] = {};
                const int64_t here = std::min<int64_t>(HIGH, each - i);
                for (int64_t r = 0; r < std::min<int64_t>(HIGH, rows - first); r++)
                    std::memcpy(block[r], from + (first + r) * stride + i * 4, size_t(here) * 4);
                transpose16(block[0], HIGH);
                std::memcpy(to + i * HIGH, block, size_t(here) * sizeof block[0]);
            }
        return to;
    }
};

// Tiles: 0 to 3 sums, 4 and 5 rows of x, 6 and 7 codes.
class TileProducts {
    TileShapes whole_, rest_;
    const Cuts &c;
    const HighRows high;
    const int64_t rows, step;

    TileShapes shapes(int64_t count) const {
        TileShapes s;
        for (int t : {0, 1, 2, 3}) s.set(t, count, 64);
        for (int t : {4, 5}) s.set(t, count, step);
        for (int t : {6, 7}) s.set(t, step / 4, 64);
        return s;
    }

    const unsigned char *codes_at(int64_t first, int64_t column) const {
        return high.codes + first * whole_blocks(c.k) + column * HIGH;
    }

    // Codes less their zero are signed bytes; without one they may be unsigned ones.
    template <int SUM, int A, int B> static void add(bool is_signed) {
        if (is_signed) add_signed<SUM, A, B>();
        else add_unsigned<SUM, A, B>();
    }

    // Sums of 16 rows, x the first of `count`, and half a panel as y has them.
    template <bool X_SCALES>
    __attribute__((noinline)) void give(const float *sums, const unsigned char *x, int64_t count, int64_t row, int part, const Sink &to) const {
        auto as = [&](auto type) {
            constexpr int32_t T = decltype(type)::value;
            for (int64_t r = 0; r < count; r++) {
                const F sum = load(sums + r * W);
                const F y = X_SCALES ? sum + to.add[part] : sum * element<float>(x + r * c.row_bytes + c.scales) + to.add[part];
                store_t<T>(to.y, (row + r) * to.y_stride + part * W, y);
            }
        };
        if (to.y_dtype == F32) as(std::integral_constant<int32_t, F32>{});
        else if (to.y_dtype == F16) as(std::integral_constant<int32_t, F16>{});
        else as(std::integral_constant<int32_t, BF16>{});
    }

    // Rows [first, last), blocks of 16 or the last one of fewer, by a panel. A product takes long until its sum can be stored, and
    // a load whose address is that of a store before it but for whole pages waits for that one: so products are four ahead of
    // what is added up, over the ends of halves and of blocks too, and sums are stored as late as there is room for them.
    // PLAIN: a unit is one piece, which is one product, of signed codes; its loops keep what they count in registers.
    template <int SUMS, bool PLAIN>
    void by_units(const Units &units, const unsigned char *x, int64_t first, int64_t last, Fetch &fetch, const Sink &to) const {
        constexpr bool minimums = SUMS & SUM_MINIMUMS, x_scales = SUMS & SUM_X_SCALES;
        const bool is_signed = PLAIN || c.zero != 0;
        const int64_t unit_pieces = PLAIN ? 1 : c.unit / c.piece, steps = PLAIN ? 1 : c.piece / step;
        const int64_t k = step, piece_bytes = k * PANEL, tail_bytes = PANEL * (minimums ? 8 : 4);
        const int64_t unit_stride = c.unit * PANEL + tail_bytes, pieces = units.count * unit_pieces;
        int64_t to_begin = (last - first + HIGH - 1) / HIGH * 2 * pieces, to_end = to_begin;

        const unsigned char *next_x = codes_at(first, units.column), *next_w = units.codes, *block_x = next_x;
        int64_t until_tail = unit_pieces, until_end = pieces;
        bool lower = true;
        auto product = [&](auto tile) __attribute__((always_inline)) {
            constexpr int S = decltype(tile)::value, X = 4 + S % 2, B = 6 + S % 2;
            zero_tile<S>();
            for (int64_t s = steps; s; s--) {
                load_tile<X>(next_x, k), load_tile<B>(next_w, PANEL * 4);
                add<S, X, B>(is_signed);
                next_x += k * HIGH, next_w += PLAIN ? unit_stride : piece_bytes;
            }
            if (!PLAIN && --until_tail == 0) until_tail = unit_pieces, next_w += tail_bytes;
            to_begin--;
            if (--until_end) return;
            until_end = pieces;
            if (!lower) block_x += HIGH * whole_blocks(c.k);
            next_x = block_x, next_w = units.codes + (lower ? W * 4 : 0), lower = !lower;
        };

        alignas(64) int32_t sums[2][HIGH][W];
        alignas(64) float result[HIGH * W];
        F f[HIGH], scale{};
        const unsigned char *w = nullptr;
        const float *scales = nullptr, *weights = nullptr;
        int64_t row = first, left = 0, to_take = 0;
        int part = 1;
        auto take = [&](const int32_t (&sum)[HIGH][W]) __attribute__((always_inline)) {
            if (to_take == 0) [[unlikely]] {
                to_take = pieces, part ^= 1;
                if (part == 0) fetch.begin();
                w = units.codes + part * W * 4 + c.unit * PANEL;
                scales = high.scales + (row * c.pieces + (units.scale - c.scales) / 4 * HIGH);
                weights = high.weights + (row * c.units + (units.weight - c.weights) / 4 * HIGH);
                const float *before = to.sums + row * PANEL + part * W;
#pragma GCC unroll 16
                for (int r = 0; r < HIGH; r++) f[r] = units.column ? load(before + r * PANEL) : set(0.0f);
            }
            if (PLAIN || left == 0) {
                left = unit_pieces;
                scale = load_as<F>(w);
                if (minimums) {
                    const F minimum = load_as<F>(w + PANEL * 4);
#pragma GCC unroll 16
                    for (int r = 0; r < HIGH; r++) f[r] -= minimum * weights[r];
                    weights += HIGH;
                }
                w += unit_stride;
            }
            left--;
#pragma GCC unroll 16
            for (int r = 0; r < HIGH; r++) f[r] += convert(load_as<I>(sum[r])) * (x_scales ? scale * scales[r] : scale);
            if (x_scales) scales += HIGH;
            to_end--;
            if (--to_take) [[likely]] return;
            float *after = to.y ? result : to.sums + row * PANEL + part * W;
            const int64_t stride = to.y ? W : PANEL;
#pragma GCC unroll 16
            for (int r = 0; r < HIGH; r++) store(after + r * stride, f[r]);
            if (to.y) give<x_scales>(result, x + row * c.row_bytes, std::min<int64_t>(HIGH, last - row), row, part, to);
            if (part) row += HIGH, fetch.end();
        };
        constexpr std::integral_constant<int, 0> t0{};
        constexpr std::integral_constant<int, 1> t1{};
        constexpr std::integral_constant<int, 2> t2{};
        constexpr std::integral_constant<int, 3> t3{};
        product(t0), product(t1);  // two at least, of a piece in both halves
        store_tile<0>(sums[0], 64), store_tile<1>(sums[1], 64);
        if (to_begin) product(t2), product(t3);
        // Products that are begun are even in number.
        auto next = [&](auto tile) __attribute__((always_inline)) {
            constexpr int S = decltype(tile)::value;
            take(sums[S % 2]);
            if (to_end > 1) store_tile<(S + 2) % 4>(sums[S % 2], 64);
            if (to_begin) product(tile);
        };
        for (;;) {
            next(t0), next(t1);
            if (!to_end) break;
            next(t2), next(t3);
            if (!to_end) break;
        }
    }

    // One sum over all of K, in integers.
    void by_codes(const Units &units, int64_t first, int64_t last, Fetch &fetch, const Sink &to) const {
        for (int64_t row = first; row < last; row += HIGH, fetch.end()) {
            fetch.begin();
            float *sums = to.sums + row * PANEL;
            if (units.column) load_tile<0>(sums, PANEL * 4), load_tile<1>(sums + W, PANEL * 4);
            else zero_tile<0>(), zero_tile<1>();
            const unsigned char *w = units.codes, *x = codes_at(row, units.column);
            for (int64_t k = units.count * 32; k > 0; k -= step, x += step * HIGH, w += step * PANEL) {
                load_tile<4>(x, step);
                load_tile<6>(w, PANEL * 4), load_tile<7>(w + W * 4, PANEL * 4);
                add<0, 4, 6>(c.zero != 0), add<1, 4, 7>(c.zero != 0);
            }
            store_tile<0>(sums, PANEL * 4), store_tile<1>(sums + W, PANEL * 4);
        }
    }

    template <int SUMS> void all(const Units &units, const unsigned char *x, Fetch &fetch, const Sink &to) const {
        auto some = [&](int64_t first, int64_t last) {
            if constexpr (SUMS < 0) by_codes(units, first, last, fetch, to);
            else if (c.unit == step && c.zero) by_units<SUMS, true>(units, x, first, last, fetch, to);
            else by_units<SUMS, false>(units, x, first, last, fetch, to);
        };
        const int64_t high_rows = rows < HIGH ? rows : rows / HIGH * HIGH;
        some(0, high_rows);
        if (rows == high_rows) return;
        rest_.use();
        some(high_rows, rows);
        whole_.use();
    }

   public:
    // memory: for HighRows.
    TileProducts(const Cuts &cuts, const unsigned char *x, int64_t row_count, unsigned char *memory)
        : c(cuts), high(cuts, x, row_count, memory), rows(row_count), step(tile_step(cuts)) {
        whole_ = shapes(std::min<int64_t>(HIGH, rows)), rest_ = shapes(rows % HIGH ? rows % HIGH : HIGH);
        whole_.use();
    }

    // All rows, x the first of them, by units of a tile.
    void add(const Units &units, const unsigned char *x, Fetch &fetch, const Sink &to) const {
        if (c.one_sum) return all<-1>(units, x, fetch, to);
        if (c.minimums) return c.x_scales ? all<SUM_BOTH>(units, x, fetch, to) : all<SUM_MINIMUMS>(units, x, fetch, to);
        return c.x_scales ? all<SUM_X_SCALES>(units, x, fetch, to) : all<SUM_PLAIN>(units, x, fetch, to);
    }
};
#endif

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
