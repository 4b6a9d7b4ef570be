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
// What rows know beside their codes, as 16 of them need it together: [(row / 16)][piece or unit][row % 16]; zeros for
// rows that there are not.
struct Beside {
    const float *scales, *weights;

    // As there is room for.
    static int64_t most_rows(const Cuts &c, size_t bytes) { return int64_t(bytes) / (HIGH * 4 * (c.pieces + c.units)) * HIGH; }

    Beside(const Cuts &c, const unsigned char *rows, int64_t count, float *memory) : scales(memory) {
        if (c.x_scales) memory = gather(rows + c.scales, c.row_bytes, count, c.pieces, memory);
        weights = memory;
        if (c.minimums) gather(rows + c.weights, c.row_bytes, count, c.units, memory);
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
    const Beside beside;
    const int64_t rows, step;  // step: k of a product

    static int64_t step_of(const Cuts &c) {
        const int64_t piece = c.one_sum ? 32 : c.piece;
        return c.one_sum || piece % 64 == 0 ? 64 : piece % 32 == 0 ? 32 : 16;
    }

    TileShapes shapes(int64_t count) const {
        TileShapes s;
        for (int t : {0, 1, 2, 3}) s.set(t, count, 64);
        for (int t : {4, 5}) s.set(t, count, step);
        for (int t : {6, 7}) s.set(t, step / 4, 64);
        return s;
    }

    // Codes less their zero are signed bytes; without one they may be unsigned ones.
    template <int SUM, int A, int B> static void add(bool is_signed) {
        if (is_signed) add_signed<SUM, A, B>();
        else add_unsigned<SUM, A, B>();
    }

    // 16 rows from number `first` on by half a panel.
    template <int SUMS> void half(const Units &units, const unsigned char *x, int64_t first, int64_t part, const Sink &to) const {
        constexpr bool minimums = SUMS & SUM_MINIMUMS, x_scales = SUMS & SUM_X_SCALES;
        const bool is_signed = c.zero != 0;
        const int64_t unit_pieces = c.unit / c.piece, unit_bytes = c.unit * PANEL, tail_bytes = PANEL * (minimums ? 8 : 4);
        const int64_t k = step, row_bytes = c.row_bytes, steps = c.piece / step, pieces = units.count * unit_pieces, count = std::min<int64_t>(HIGH, rows - first);
        const float *scales = beside.scales + (first * c.pieces + (units.scale - c.scales) / 4 * HIGH);
        const float *weights = beside.weights + (first * c.units + (units.weight - c.weights) / 4 * HIGH);
        alignas(64) int32_t sums[4][HIGH][W];
        F f[HIGH];
#pragma GCC unroll 16
        for (int r = 0; r < HIGH; r++) f[r] = units.column ? load(to.sums + r * PANEL + part * W) : set(0.0f);
        const unsigned char *issued_w = units.codes + part * W * 4, *issued_x = x + units.column, *w = issued_w + unit_bytes;
        int64_t issued = 0, until_tail = unit_pieces, left = 0;
        auto issue = [&](auto which) __attribute__((always_inline)) {
            constexpr int S = decltype(which)::value;
            zero_tile<S>();
            for (int64_t s = steps; s; s--) {
                load_tile<4 + S>(issued_x, row_bytes), load_tile<6 + S>(issued_w, PANEL * 4);
                add<S, 4 + S, 6 + S>(is_signed);
                issued_x += k, issued_w += k * PANEL;
            }
            if (--until_tail == 0) until_tail = unit_pieces, issued_w += tail_bytes;
        };
        // Two sums before they are stored: a load whose address is that of a store before it but for whole pages waits for it.
        auto issue_two = [&]() __attribute__((always_inline)) {
            const bool two = pieces - issued > 1;
            issue(std::integral_constant<int, 0>{});
            if (two) issue(std::integral_constant<int, 1>{});
            store_tile<0>(sums[issued & 3], 64);
            if (two) store_tile<1>(sums[(issued + 1) & 3], 64);
            issued += 2;
        };
        F scale{};
        auto take = [&](int64_t number) __attribute__((always_inline)) {
            if (left == 0) {
                left = unit_pieces;
                scale = load_as<F>(w);
                if (minimums) {
                    const F minimum = load_as<F>(w + PANEL * 4);
#pragma GCC unroll 16
                    for (int r = 0; r < HIGH; r++) f[r] -= minimum * weights[r];
                    weights += HIGH;
                }
                w += unit_bytes + tail_bytes;
            }
            left--;
            const int32_t(*sum)[W] = sums[number & 3];
#pragma GCC unroll 16
            for (int r = 0; r < HIGH; r++) f[r] += convert(load_as<I>(sum[r])) * (x_scales ? scale * scales[r] : scale);
            if (x_scales) scales += HIGH;
        };
        issue_two();
        for (int64_t taken = 0; taken < pieces;) {
            if (issued < pieces) issue_two();
            take(taken++);
            if (taken < pieces) take(taken++);
        }
        if (!to.y) {
            for (int r = 0; r < count; r++) store(to.sums + r * PANEL + part * W, f[r]);
            return;
        }
        auto as = [&](auto type) {
            constexpr int32_t T = decltype(type)::value;
            for (int r = 0; r < count; r++) {
                const F y = x_scales ? f[r] + to.add[part] : f[r] * element<float>(x + r * c.row_bytes + c.scales) + to.add[part];
                store_t<T>(to.y, r * to.y_stride + part * W, y);
            }
        };
        if (to.y_dtype == F32) as(std::integral_constant<int32_t, F32>{});
        else if (to.y_dtype == F16) as(std::integral_constant<int32_t, F16>{});
        else as(std::integral_constant<int32_t, BF16>{});
    }

    // One sum over all of K, in integers.
    void both_halves(const Units &units, const unsigned char *x, const Sink &to) const {
        float *sums = to.sums;
        if (units.column) load_tile<0>(sums, PANEL * 4), load_tile<1>(sums + W, PANEL * 4);
        else zero_tile<0>(), zero_tile<1>();
        const unsigned char *w = units.codes;
        x += units.column;
        for (int64_t k = units.count * 32; k > 0; k -= step, x += step, w += step * PANEL) {
            load_tile<4>(x, c.row_bytes);
            load_tile<6>(w, PANEL * 4), load_tile<7>(w + W * 4, PANEL * 4);
            add<0, 4, 6>(c.zero != 0), add<1, 4, 7>(c.zero != 0);
        }
        store_tile<0>(sums, PANEL * 4), store_tile<1>(sums + W, PANEL * 4);
    }

    template <int SUMS> void all(const Units &units, const unsigned char *x, Fetch &fetch, Sink &to) const {
        static_assert(VECTORS == 2);
        for (int64_t first = 0; first < rows; first += HIGH, x += HIGH * c.row_bytes, to.pass(HIGH), fetch.end()) {
            fetch.begin();
            if (first + HIGH > rows && rows > HIGH) rest_.use();
            if constexpr (SUMS < 0) both_halves(units, x, to);
            else half<SUMS>(units, x, first, 0, to), half<SUMS>(units, x, first, 1, to);
        }
        if (rows % HIGH && rows > HIGH) whole_.use();
    }

   public:
    // memory: for Beside.
    TileProducts(const Cuts &cuts, const unsigned char *x, int64_t row_count, float *memory)
        : c(cuts), beside(cuts, x, row_count, memory), rows(row_count), step(step_of(cuts)) {
        whole_ = shapes(std::min<int64_t>(HIGH, rows)), rest_ = shapes(rows % HIGH ? rows % HIGH : HIGH);
        whole_.use();
    }

    // All rows, x the first of them, by units of a tile.
    void add(const Units &units, const unsigned char *x, Fetch &fetch, Sink &to) const {
        if (c.one_sum) return all<-1>(units, x, fetch, to);
        if (c.minimums) return c.x_scales ? all<SUM_BOTH>(units, x, fetch, to) : all<SUM_MINIMUMS>(units, x, fetch, to);
        return c.x_scales ? all<SUM_X_SCALES>(units, x, fetch, to) : all<SUM_PLAIN>(units, x, fetch, to);
    }
};
#endif

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
