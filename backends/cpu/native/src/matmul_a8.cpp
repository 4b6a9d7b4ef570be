// y = x W^T + b with int8 activations: x is quantized here, row by row, then multiplied panel by panel. Also the product
// of rows sorted by expert, each range with a weight of its own.
#include "matmul_a8.h"

#include <algorithm>

#include "kernels.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int64_t FEW = 8;                   // rows for which codes are unpacked in registers
constexpr int MOST = W == 16 ? 6 : 4;        // rows of x in registers together, of many
constexpr int MOST_PACKED = 4;               // the same, of few
constexpr int64_t BLOCK_BYTES = 640 << 10;   // of quantized rows that stay in a level 2 cache while panels pass
constexpr int64_t BLOCK_ROWS = 48, MAX_BLOCK_ROWS = 504;
// From so many rows for each thread on, a thread multiplies the rows that it quantized, by all of the weight. Codes, x and y
// then stay with its core, which in two cores without a common cache is worth more than reading the weight once.
constexpr int64_t OWN_ROWS = 48;

// A thread's scratch memory: a tile, one row as f32, its sums, y of a block, and for a single row its codes.
struct Scratch {
    Tile *tile;
    float *y;
    float *row;
    int32_t *sums;
    unsigned char *codes;

    Scratch(unsigned char *own, int64_t k) {
        tile = reinterpret_cast<Tile *>(own);
        y = reinterpret_cast<float *>(own + sizeof(Tile));
        row = y + MAX_BLOCK_ROWS * PANEL;
        sums = reinterpret_cast<int32_t *>(row + whole_blocks(k));
        codes = reinterpret_cast<unsigned char *>(sums + whole_blocks(k) / 16 + 16);
    }
};

static void quantize_row(const MatmulA8 &c, const A8Weight &w, const Cuts &cuts, int64_t row, const Scratch &scratch,
                         unsigned char *to) {
    const float *x = as_f32_row(c.x, row * c.x_stride, c.k, c.x_dtype, w.permutation, scratch.row);
    int8_t *codes = reinterpret_cast<int8_t *>(to);
    int32_t *starts = reinterpret_cast<int32_t *>(to + cuts.starts), *sums = scratch.sums;
    float *weights = reinterpret_cast<float *>(to + cuts.weights), *scales = reinterpret_cast<float *>(to + cuts.scales);
    const int64_t padded = whole_blocks(c.k), pieces = cuts.pieces(), units = cuts.units();
    if (!cuts.x_scales) {
        scales[0] = largest_magnitude(x, padded) / 127.0f;
        codes_of(x, padded, scales[0], codes);
    } else {
        const int64_t repeats = 32 / cuts.piece;
        for (int64_t i = 0, piece = 0; i < padded; i += 32) {
            float scale = largest_magnitude(x + i, 32) / 127.0f;
            codes_of(x + i, 32, scale, codes + i);
            for (int64_t j = 0; j < repeats; j++) scales[piece++] = scale;
        }
    }
    sums_of_16(codes, padded, sums);
    const int64_t sixteenths = cuts.piece / 16;
    for (int64_t p = 0; p < pieces; p++) {
        int32_t sum = 0;
        for (int64_t j = 0; j < sixteenths; j++) sum += sums[p * sixteenths + j];
        starts[p] = -cuts.zero * sum;
        sums[p] = sum;
    }
    if (!cuts.minimums) return;
    const int64_t unit_pieces = cuts.unit / cuts.piece;
    for (int64_t u = 0; u < units; u++) {
        float weight = 0;
        for (int64_t p = u * unit_pieces; p < (u + 1) * unit_pieces; p++)
            weight += cuts.x_scales ? float(sums[p]) * scales[p] : float(sums[p]);
        weights[u] = weight;
    }
}

// ---- which loops

using PackedRows = void (*)(const Cuts &, const unsigned char *, const unsigned char *, float *);
using TileRows = void (*)(const Cuts &, const Tile &, const unsigned char *, int64_t, int64_t, float *);

template <int BITS, int SLAB> static PackedRows packed_rows_of(int64_t rows) {
    constexpr PackedRows all[] = {packed_rows<1, BITS, SLAB>, packed_rows<2, BITS, SLAB>, packed_rows<3, BITS, SLAB>,
                                  packed_rows<4, BITS, SLAB>};
    return all[rows - 1];
}

static PackedRows packed_rows_for(const Cuts &c, int64_t rows) {
    if (c.slab == 32)
        return c.bits == 4 ? packed_rows_of<4, 32>(rows) : c.bits == 2 ? packed_rows_of<2, 32>(rows) : packed_rows_of<8, 32>(rows);
    return c.bits == 4 ? packed_rows_of<4, 16>(rows) : c.bits == 2 ? packed_rows_of<2, 16>(rows) : packed_rows_of<8, 16>(rows);
}

template <int SUMS, int SLAB, int NIBBLES> static TileRows tile_rows_of(int64_t rows) {
    constexpr TileRows all[] = {tile_rows<MOST - 2, SUMS, SLAB, NIBBLES>, tile_rows<MOST - 1, SUMS, SLAB, NIBBLES>,
                                tile_rows<MOST, SUMS, SLAB, NIBBLES>};
    return all[rows - (MOST - 2)];
}

template <int NIBBLES> static TileRows tile_rows_by_sums(const Cuts &c, int64_t rows) {
    if (c.one_sum) {
        constexpr TileRows all[] = {tile_rows_one_sum<MOST - 2, NIBBLES>, tile_rows_one_sum<MOST - 1, NIBBLES>,
                                    tile_rows_one_sum<MOST, NIBBLES>};
        return all[rows - (MOST - 2)];
    }
    bool wide = c.piece % 32 == 0;
    switch ((c.minimums ? SUM_MINIMUMS : 0) | (c.x_scales ? SUM_X_SCALES : 0)) {
        case SUM_PLAIN: return wide ? tile_rows_of<SUM_PLAIN, 32, NIBBLES>(rows) : tile_rows_of<SUM_PLAIN, 16, NIBBLES>(rows);
        case SUM_MINIMUMS:
            return wide ? tile_rows_of<SUM_MINIMUMS, 32, NIBBLES>(rows) : tile_rows_of<SUM_MINIMUMS, 16, NIBBLES>(rows);
        case SUM_X_SCALES:
            return wide ? tile_rows_of<SUM_X_SCALES, 32, NIBBLES>(rows) : tile_rows_of<SUM_X_SCALES, 16, NIBBLES>(rows);
        default: return wide ? tile_rows_of<SUM_BOTH, 32, NIBBLES>(rows) : tile_rows_of<SUM_BOTH, 16, NIBBLES>(rows);
    }
}

static TileRows tile_rows_for(const Cuts &c, int64_t rows) {
    return c.bits == 8 ? tile_rows_by_sums<NIBBLES_OF_BYTE>(c, rows) : tile_rows_by_sums<1>(c, rows);
}

// ---- a block of rows times a panel

// Rows into equal parts of at most `most`.
template <class Visit> static void parts_of(int64_t rows, int64_t most, Visit visit) {
    int64_t count = (rows + most - 1) / most, at = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t size = (rows - at) / (count - i);
        visit(at, size);
        at += size;
    }
}

static void fetch(const unsigned char *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// first_row: of y. codes: of that row. bias: of this weight, or null.
static void block_of_panel(const MatmulA8 &c, const A8Weight &w, const Cuts &cuts, int64_t panel, int64_t first_row,
                           int64_t rows, const unsigned char *codes, const float *bias, const Scratch &scratch) {
    const unsigned char *from = w.panels.data + panel * cuts.panel_bytes;
    const bool is_integer = rows > FEW && cuts.one_sum;
    if (rows <= FEW) {
        parts_of(rows, MOST_PACKED, [&](int64_t at, int64_t size) {
            packed_rows_for(cuts, size)(cuts, from, codes + at * cuts.row_bytes, scratch.y + at * PANEL);
        });
    } else {
        const int64_t step = cuts.one_sum ? TILE_K : TILE_K / cuts.unit * cuts.unit;
        const int64_t parts = (rows + MOST - 1) / MOST;
        for (int64_t k = 0; k < cuts.k; k += step) {
            int64_t columns = std::min(step, cuts.k - k);
            unpack(cuts, from, k, columns, *scratch.tile);
            // What the next columns take lies about as far on as these did; fetched in equal shares between the rows.
            const unsigned char *next = from + (k + columns) / cuts.group * cuts.group_bytes +
                                        (k + columns) % cuts.group * PANEL * cuts.bits / 8;
            int64_t share = (columns * PANEL * cuts.bits / 8 * cuts.group_bytes / cuts.code_bytes / parts + 127) / 64 * 64;
            parts_of(rows, MOST, [&](int64_t at, int64_t size) {
                fetch(next, share);
                next += share;
                tile_rows_for(cuts, size)(cuts, *scratch.tile, codes + at * cuts.row_bytes, k, columns,
                                          scratch.y + at * PANEL);
            });
        }
    }
    const int64_t n = panel * PANEL, width = std::min<int64_t>(PANEL, c.n - n);
    F factor[VECTORS], add[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        int count = int(std::clamp<int64_t>(width - v * W, 0, W));
        factor[v] = is_integer ? load_scale(from + cuts.code_bytes, v * W, cuts.scale_dtype) : set(1.0f);
        add[v] = bias ? load_part(bias, n + v * W, F32, count) : set(0.0f);
    }
    for (int64_t r = 0; r < rows; r++) {
        float scale = cuts.x_scales ? 1.0f : element<float>(codes + r * cuts.row_bytes + cuts.scales);
        const int64_t to = (first_row + r) * c.y_stride + n;
        for (int v = 0; v < VECTORS && v * W < width; v++) {
            F sum = load(scratch.y + r * PANEL + v * W);
            if (is_integer) sum = convert(as_int(sum)) * factor[v];
            F y = sum * scale + add[v];
            if (width - v * W >= W) store_any(c.y, to + v * W, c.y_dtype, y);
            else store_part(c.y, to + v * W, c.y_dtype, y, int(width - v * W));
        }
    }
}

void matmul_a8(const Command *command, Worker &worker) {
    const MatmulA8 &c = *static_cast<const MatmulA8 *>(command);
    const Scratch scratch(worker.own, c.k);
    const int64_t panels = (c.n + PANEL - 1) / PANEL;
    // Offsets are read here for the first time, unless `checked="deep"`: wrong ones may give wrong rows, no more.
    const int64_t rows = c.offsets ? std::clamp(c.offsets[c.experts], int64_t(0), c.rows) : c.rows;
    if (rows == 1 && !c.offsets) {
        const Cuts cuts = cuts_of(c.weights[0].panels, c.x_group);
        int64_t begin, end;
        worker.share(panels, begin, end);
        if (begin < end) quantize_row(c, c.weights[0], cuts, 0, scratch, scratch.codes);
        for (int64_t panel = begin; panel < end; panel++)
            block_of_panel(c, c.weights[0], cuts, panel, 0, 1, scratch.codes, c.bias, scratch);
        return;
    }
    int64_t row_bytes = 0;
    for (int64_t e = 0; e < c.experts; e++)
        row_bytes = std::max(row_bytes, cuts_of(c.weights[e].panels, c.x_group).row_bytes);
    if (!row_bytes) return;
    const int64_t step = std::max<int64_t>(1, c.workspace / row_bytes);
    int pass = 0;
    for (int64_t first = 0; first < rows; first += step, pass++) {
        const int64_t last = std::min(rows, first + step);
        // The rows of this pass that meet weight e, in that weight's cuts.
        auto each_expert = [&](auto visit) {
            for (int64_t e = 0; e < c.experts; e++) {
                int64_t begin = std::max(first, c.offsets ? c.offsets[e] : 0);
                int64_t end = std::min(last, c.offsets ? c.offsets[e + 1] : c.rows);
                if (begin >= end) continue;
                Cuts cuts = cuts_of(c.weights[e].panels, c.x_group);
                cuts.row_bytes = row_bytes;
                if (!visit(e, cuts, begin, end)) break;
            }
        };
        if (pass) worker.barrier();
        int64_t mine, others;
        worker.share(last - first, mine, others);
        mine += first, others += first;
        each_expert([&](int64_t e, const Cuts &cuts, int64_t begin, int64_t end) {
            for (int64_t row = std::max(begin, mine); row < std::min(end, others); row++)
                quantize_row(c, c.weights[e], cuts, row, scratch, worker.shared + (row - first) * row_bytes);
            return true;
        });
        const int64_t most = std::clamp(BLOCK_BYTES / row_bytes, BLOCK_ROWS, MAX_BLOCK_ROWS);
        auto blocks_of = [&](int64_t count) { return (count + most - 1) / most; };
        if (!c.offsets && last - first >= OWN_ROWS * worker.count) {
            const Cuts cuts = cuts_of(c.weights[0].panels, c.x_group);
            const int64_t count = others - mine, blocks = blocks_of(count);
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t from = mine + count * block / blocks, to = mine + count * (block + 1) / blocks;
                for (int64_t panel = 0; panel < panels; panel++)
                    block_of_panel(c, c.weights[0], cuts, panel, from, to - from,
                                   worker.shared + (from - first) * row_bytes, c.bias, scratch);
            }
            continue;
        }
        worker.barrier();
        int64_t total = 0;
        each_expert([&](int64_t, const Cuts &, int64_t begin, int64_t end) {
            total += blocks_of(end - begin) * panels;
            return true;
        });
        auto run_piece = [&](int64_t piece) {
            each_expert([&](int64_t e, const Cuts &cuts, int64_t begin, int64_t end) {
                const int64_t blocks = blocks_of(end - begin);
                if (piece >= blocks * panels) {
                    piece -= blocks * panels;
                    return true;
                }
                const int64_t block = piece / panels, count = end - begin;
                const int64_t from = begin + count * block / blocks, to = begin + count * (block + 1) / blocks;
                block_of_panel(c, c.weights[e], cuts, piece % panels, from, to - from,
                               worker.shared + (from - first) * row_bytes, c.bias ? c.bias + e * c.n : nullptr, scratch);
                return false;
            });
        };
        if (pass < COUNTERS) {
            for (int64_t piece; (piece = worker.next(pass, total)) >= 0;) run_piece(piece);
        } else {
            int64_t begin, end;
            worker.share(total, begin, end);
            for (int64_t piece = begin; piece < end; piece++) run_piece(piece);
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
