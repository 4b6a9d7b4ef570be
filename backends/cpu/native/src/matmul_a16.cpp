// y = x W^T + b with float activations: codes are widened to f32 and multiplied there. Also the product of rows sorted by
// expert, each range with a weight of its own.
//
// A few rows: as digits of integers, where those pay (matmul_a16_digits.h). Or weights are widened in registers, once for all
// of them. More rows: a piece of a panel is widened once into this thread's memory, [k][32] of f32, and all rows meet it
// there (matmul_a16_codes.h, matmul_a16_floats.h).
#include "kernels.h"
#if OPSOCKET_OWN_PRODUCTS
#include <limits>

#include "matmul_a16_codes.h"
#include "matmul_a16_digits.h"
#include "matmul_a16_floats.h"
#include "shares.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

namespace {

// Rows of x that meet one weight: x and y are those of the first.
struct Product {
    const Panels &weight;
    const int64_t *permutation;
    const float *bias;
    int64_t rows, n, k;
    const void *x;
    int64_t x_stride;
    void *y;
    int64_t y_stride;
    int32_t x_dtype, y_dtype, float_dtype;

    Product(const MatmulA16 &c, int64_t expert, int64_t first, int64_t count)
        : weight(c.weights[expert].panels), permutation(c.weights[expert].permutation),
          bias(c.bias ? c.bias + expert * c.n : nullptr), rows(count), n(c.n), k(c.k),
          x(at(c.x, first * c.x_stride, c.x_dtype)), x_stride(c.x_stride), y(at(c.y, first * c.y_stride, c.y_dtype)),
          y_stride(c.y_stride), x_dtype(c.x_dtype), y_dtype(c.y_dtype), float_dtype(c.float_dtype) {}

    int64_t padded() const { return float_dtype >= 0 ? k : weight.k; }
};

constexpr int ROWS = W == 16 ? 8 : 6;        // that meet PART vectors of a tile at a time: registers decide
constexpr int64_t BLOCK_ROWS = 384;          // rows whose sums are kept at a time
constexpr int64_t FEW = 16;                  // rows up to which a panel takes no longer than to agree on who takes it
constexpr int64_t MEMORY_ROWS = 2;           // as long as whose products a panel's memory takes
constexpr int64_t OWN_ROWS = 48;             // of each thread: from so many on it multiplies its own, as in matmul_a8.cpp

// sums[r][32] += x[r][0 .. count) tile[count][32], R rows. A tile's sum is its own: in one chain through all of k roundings
// that lean one way would add up.
template <int R> void multiply(const float *x, int64_t x_stride, const float *tile, int64_t count, float *sums) {
    for (int first = 0; first < PANEL; first += PART * W) {
        F s[R][PART] = {};
#pragma GCC unroll 4  // of what a k takes beside its products a twelfth is saved, more than by more rows
        for (int64_t k = 0; k < count; k++) {
            F t[PART];
            for (int v = 0; v < PART; v++) t[v] = load(tile + k * PANEL + first + v * W);
            for (int r = 0; r < R; r++) {
                const F factor = set(x[r * x_stride + k]);
                for (int v = 0; v < PART; v++) s[r][v] = s[r][v] + factor * t[v];
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < PART; v++) {
                float *sum = sums + r * PANEL + first + v * W;
                store(sum, load(sum) + s[r][v]);
            }
    }
}

template <int R = ROWS>
void multiply_some(int rows, const float *x, int64_t x_stride, const float *tile, int64_t count, float *sums) {
    if constexpr (R > 0) {
        if (rows == R) multiply<R>(x, x_stride, tile, count, sums);
        else multiply_some<R - 1>(rows, x, x_stride, tile, count, sums);
    }
}

// All rows, in blocks of about one size: the sums of a row or two would leave pipes waiting.
void multiply_rows(int64_t rows, const float *x, int64_t x_stride, const float *tile, int64_t count, float *sums) {
    for (int64_t blocks = (rows + ROWS - 1) / ROWS; blocks > 0; blocks--) {
        const int64_t some = (rows + blocks - 1) / blocks;
        multiply_some(int(some), x, x_stride, tile, count, sums);
        rows -= some, x += some * x_stride, sums += some * PANEL;
    }
}

// Sums of a row's groups. They depend on no panel, and broadcasts of what scalars need too would take the pipe of permutes.
void totals_of_groups(const float *x, int64_t k, int64_t group, float *totals) {
    for (int64_t first = 0; first < k; first += group) {
        F total = set(0.0f);
        for (int64_t i = 0; i < group; i += W) total = total + load(x + first + i);
        *totals++ = sum(total);
    }
}

// ---- few rows, as digits

using RowsByDigits = void (*)(const Panels &, const uint8_t *, const DigitRows &, float *);

// What multiplies all rows of x, once their digits are in `to`; null where they are to be multiplied as floats.
template <int DIGITS, int BITS, int SLAB, int ROWS = most_digit_rows(DIGITS, BITS)>
RowsByDigits split_rows(const Product &p, const DigitRows &to) {
    if constexpr (ROWS > 0) {
        if (p.rows != ROWS) return split_rows<DIGITS, BITS, SLAB, ROWS - 1>(p, to);
        for (int r = 0; r < ROWS; r++) {
            const float *row = as_f32_row(p.x, r * p.x_stride, p.k, p.x_dtype, p.permutation, to.row);
            if (!split_row<ROWS, DIGITS, SLAB>(p.weight, row, r, to)) return nullptr;
            if (p.weight.has_minimum)
                totals_of_groups(row, p.weight.k, p.weight.group, to.totals + r * (p.weight.k / p.weight.group));
        }
        return rows_by_digits<ROWS, DIGITS, BITS, SLAB>;
    } else {
        return nullptr;
    }
}

template <int DIGITS> RowsByDigits split_by_form(const Product &p, unsigned char *own, size_t own_bytes, DigitRows &to) {
    if (p.rows > most_digit_rows(DIGITS, 4) || size_t(DigitRows::bytes(p.rows, DIGITS, p.k)) > own_bytes) return nullptr;
    to = DigitRows::in(own, p.rows, DIGITS, p.k);
    RowsByDigits found = nullptr;
    auto split = [&](auto bits, auto slab) {
        found = split_rows<DIGITS, decltype(bits)::value, decltype(slab)::value>(p, to);
    };
    if (is_by_table(p.weight)) split(std::integral_constant<int, BY_TABLE>{}, std::integral_constant<int, 32>{});
    else if (p.weight.code == INTEGERS) by_form(p.weight, split);
    return found;
}

// ----

// All rows of x, f32 with x_stride, against one panel; sums [rows][32]. totals: of the groups of few rows, or null.
void panel_product(const Product &p, int64_t number, const float *x, int64_t x_stride, int64_t rows, const float *totals,
                   float *tile, float *sums) {
    std::memset(sums, 0, size_t(rows) * PANEL * 4);
    if (p.float_dtype >= 0) {
        const int64_t element = p.float_dtype == F32 ? 4 : 2, k_stored = p.float_dtype == BF16 ? (p.k + 1) / 2 * 2 : p.k;
        const uint8_t *panel = p.weight.data + number * k_stored * PANEL * element;
        if (rows <= MOST_IN_REGISTERS && element == 2)
            return few_floats(p.float_dtype, rows)(panel, p.k, x, x_stride, sums);
        for (int64_t first = 0; first < p.k; first += TILE_K) {
            const int64_t count = p.k - first < TILE_K ? p.k - first : TILE_K;
            const float *t = float_tile(p.float_dtype, panel, first, count, tile);
            multiply_rows(rows, x + first, x_stride, t, count, sums);
        }
        return;
    }
    const Panels &w = p.weight;
    const Widen widened = widen_of(w);
    const uint8_t *panel = w.data + number * w.panel_bytes();
    if (totals) {
        const int64_t blocks = (rows + MOST_IN_REGISTERS - 1) / MOST_IN_REGISTERS, groups = w.k / w.group;
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t r = rows * block / blocks, some = rows * (block + 1) / blocks - r;
            few_rows(w, some)(w, panel, x + r * x_stride, x_stride, totals + r * groups, sums + r * PANEL);
        }
        return;
    }
    // Whole groups at a time where they are small, pieces of one where they are large.
    const int64_t groups = w.group < TILE_K ? TILE_K / w.group : 1;
    const int64_t piece = w.group < TILE_K ? w.group : TILE_K / w.slab() * w.slab();
    for (int64_t first = 0; first < w.k;) {
        int64_t count = 0;
        for (int64_t g = 0; g < groups && first + count < w.k; g++) {
            const int64_t at = first + count, in_group = at % w.group, left = w.group - in_group;
            const int64_t part = left < piece ? left : piece;
            if (rows <= FEW) ask_ahead(w.group_at(panel, at / w.group) + in_group * PANEL * w.bits / 8,
                                       part == w.group ? w.group_bytes() : part * PANEL * w.bits / 8);
            widened(w, panel, at / w.group, in_group, part, tile + count * PANEL);
            count += part;
        }
        multiply_rows(rows, x + first, x_stride, tile, count, sums);
        first += count;
    }
}

// Sums of a panel, [rows][32], -> y from row `row` on.
void write_sums(const Product &p, int64_t number, int64_t row, int64_t rows, float *sums) {
    const int64_t column = number * PANEL;
    const int columns = int(p.n - column < PANEL ? p.n - column : PANEL);
    for (int64_t r = 0; r < rows; r++) {
        float *s = sums + r * PANEL;
        if (p.bias)
            for (int j = 0; j < columns; j++) s[j] += p.bias[column + j];
        const int64_t y = (row + r) * p.y_stride + column;
        int j = 0;
        for (; j + W <= columns; j += W) store_any(p.y, y + j, p.y_dtype, load(s + j));
        for (; j < columns; j++) store_one(p.y, y + j, p.y_dtype, s[j]);
    }
}

// Panels begin to end of a product, and whether they were done so. Every thread splits the rows for itself: sooner done than
// another's are waited for.
bool by_digits(const Product &p, int64_t begin, int64_t end, float *sums, unsigned char *own, size_t own_bytes) {
    if (p.float_dtype >= 0) return false;
    DigitRows rows;
    RowsByDigits multiply = p.x_dtype == F32 ? nullptr : split_by_form<3>(p, own, own_bytes, rows);
    if (!multiply) multiply = split_by_form<4>(p, own, own_bytes, rows);
    if (!multiply) return false;
    for (int64_t number = begin; number < end; number++) {
        multiply(p.weight, p.weight.data + number * p.weight.panel_bytes(), rows, sums);
        write_sums(p, number, 0, p.rows, sums);
    }
    return true;
}

// Rows of x as f32, in the order of a weight's codes, with zeros behind them where columns are padded.
struct WideRows {
    const float *x;
    int64_t stride;
};

// Straight from the caller where x is that already; else the threads make them together and wait for each other.
WideRows widen_rows(const MatmulA16 &c, int64_t rows, Worker &worker) {
    bool in_place = c.x_dtype == F32;
    each_weight(c, rows, [&](int64_t expert, int64_t, int64_t) {
        const Product p(c, expert, 0, 0);
        in_place = in_place && !p.permutation && p.padded() == c.k;
    });
    if (in_place) return {static_cast<const float *>(c.x), c.x_stride};
    const int64_t stride = whole_blocks(c.k);
    int64_t begin, end;
    worker.share(rows, begin, end);
    each_weight(c, rows, [&](int64_t expert, int64_t first, int64_t count) {
        for (int64_t r = std::max(begin, first); r < std::min(end, first + count); r++) {
            float *to = reinterpret_cast<float *>(worker.shared) + r * stride;
            const float *row = as_f32_row(c.x, r * c.x_stride, c.k, c.x_dtype, c.weights[expert].permutation, to);
            if (row != to) std::memcpy(to, row, size_t(c.k) * 4);
        }
    });
    worker.barrier();
    return {reinterpret_cast<float *>(worker.shared), stride};
}

}  // namespace

void matmul_a16(const Command *command, Worker &worker) {
    const MatmulA16 &c = *static_cast<const MatmulA16 *>(command);
    float *tile = reinterpret_cast<float *>(worker.own), *sums = tile + TILE_K * PANEL;
    unsigned char *rest = reinterpret_cast<unsigned char *>(sums + BLOCK_ROWS * PANEL);
    const size_t rest_bytes = OWN_BYTES - size_t(rest - worker.own);
    // Offsets are read here for the first time, unless `checked="deep"`: wrong ones may give wrong rows, no more.
    const int64_t rows = c.offsets ? std::clamp(c.offsets[c.experts], int64_t(0), c.rows) : c.rows;
    const int64_t panels = (c.n + PANEL - 1) / PANEL;
    int64_t begin, end;
    worker.share(panels, begin, end);
    // Of one weight before rows are widened, which threads wait for.
    if (!c.offsets && by_digits(Product(c, 0, 0, rows), begin, end, sums, rest, rest_bytes)) return;
    const WideRows wide = widen_rows(c, rows, worker);
    // Panels of few rows are shared by what they cost, so that a thread has those of some experts, and splits no rows of others:
    // a panel takes as long as its rows, and as some more do for its memory.
    auto cost_of = [&](int64_t count) { return count <= FEW ? panels * (count + MEMORY_ROWS) : 0; };
    int64_t cost = 0;
    each_weight(c, rows, [&](int64_t, int64_t, int64_t count) { cost += cost_of(count); });
    Shares shares(worker, cost);
    // Panels of many rows, one weight's after the other's: whoever is free takes the next.
    int64_t taken = -1, before = 0;
    auto take = [&] { return worker.next(0, std::numeric_limits<int64_t>::max()); };
    each_weight(c, rows, [&](int64_t expert, int64_t first, int64_t count) {
        if (count <= FEW) {
            shares.take(panels, cost_of(count), begin, end);
            if (begin == end) return;
        }
        const Product p(c, expert, first, count);
        if (c.offsets && count <= FEW && by_digits(p, begin, end, sums, rest, rest_bytes)) return;
        const float *x = wide.x + first * wide.stride;
        // In place of the tile, which few rows do without.
        const int64_t groups = p.float_dtype < 0 ? p.padded() / p.weight.group : 0;
        const bool few = groups && count <= MOST_OF_CODES && count * groups <= TILE_K * PANEL;
        for (int64_t r = 0; few && r < count; r++)
            totals_of_groups(x + r * wide.stride, p.padded(), p.weight.group, tile + r * groups);
        auto panel_of_rows = [&](int64_t number, int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
                const int64_t some = std::min(end - row, BLOCK_ROWS);
                panel_product(p, number, x + row * wide.stride, wide.stride, some, few ? tile : nullptr, tile, sums);
                write_sums(p, number, row, some, sums);
            }
        };
        if (count >= OWN_ROWS * worker.count) {
            int64_t own_first, own_last;
            worker.share(count, own_first, own_last);
            for (int64_t number = 0; number < panels; number++) panel_of_rows(number, own_first, own_last);
        } else if (count <= FEW) {
            for (int64_t number = begin; number < end; number++) panel_of_rows(number, 0, count);
        } else {
            if (taken < 0) taken = take();
            for (; taken < before + panels; taken = take()) panel_of_rows(taken - before, 0, count);
            before += panels;
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
#endif
