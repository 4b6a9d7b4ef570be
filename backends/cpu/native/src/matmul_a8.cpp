// y = x W^T + b with int8 activations: x is quantized here, row by row, then multiplied panel by panel. Also the product
// of rows sorted by expert, each range with a weight of its own.
#include "kernels.h"
#if OPSOCKET_OWN_PRODUCTS
#include <algorithm>
#include <utility>

#include "matmul_a8_amx.h"
#include "matmul_a8_tile.h"
#include "shares.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int64_t FEW = W == 16 ? 16 : 8;     // rows for which codes are unpacked in registers and memory decides
#if OPSOCKET_AVX512 || OPSOCKET_AVX2 || OPSOCKET_NEON
constexpr int MOST = W == 16 ? 8 : 4;  // rows of x that there are loops for
#else
constexpr int MOST = 2;  // no such machine is chosen for speed, and its compiler takes the longest
#endif
constexpr int64_t FEW_BY_TILES = 24;         // rows of each weight, on average, up to which VNNI's loops are as fast as tiles of AMX
constexpr int64_t FEW_EACH = 64;             // rows of each weight, on average, up to which a thread's panels are one run
constexpr int64_t AHEAD = 4096;              // bytes of weights that several of these ask for before they are needed
constexpr int64_t BLOCK_BYTES = 640 << 10;   // of quantized rows that stay in a level 2 cache while panels pass
constexpr int64_t BLOCK_ROWS = 48, MAX_BLOCK_ROWS = 504;
// From so many rows for each thread on, a thread multiplies the rows that it quantized, by all of the weight. Codes, x and y
// then stay with its core, which in two cores without a common cache is worth more than reading the weight once.
constexpr int64_t OWN_ROWS = 128;

// Rows that there are loops for. Of groups that 32 does not divide, but in super-blocks, more than one meet codes in a tile;
// codes of 8 bits there too where they are widened, or they would have to be from zero.
constexpr int most_rows(int bits, int slab, int place) {
    return slab == 16 && place == AT_GROUP && (bits < 8 || HAS_SHORT_SUMS) ? 1 : MOST;
}

// Whether so many rows meet codes that were unpacked into a tile. Rows of several blocks do if those of one do.
static bool meet_in_tile([[maybe_unused]] const Cuts &cuts, [[maybe_unused]] int64_t rows) {
#if OPSOCKET_AMX
    return true;
#else
    if (most_rows(cuts.bits, cuts.slab, cuts.is_headed ? IN_HEAD : AT_GROUP) == 1) return rows > 1;
    return cuts.is_wide ? rows > MOST_OF_WIDE : rows > FEW && cuts.bits < 8;
#endif
}

// A thread's scratch memory: a tile, one row as f32, its sums, y of a block, factors, and for a single row its codes.
struct Scratch {
    Tile *tile;
    float *y;
    float *row;
    int32_t *sums;
    float *inverses;  // of two rows, where a scale has 32 columns
    unsigned char *codes;  // or rows as tiles of AMX have them

    Scratch(unsigned char *own, int64_t k) {
        tile = reinterpret_cast<Tile *>(own);
        y = reinterpret_cast<float *>(own + sizeof(Tile));
        row = y + (MAX_BLOCK_ROWS + HIGH) * PANEL;
        sums = reinterpret_cast<int32_t *>(row + whole_blocks(k));
        inverses = reinterpret_cast<float *>(sums + whole_blocks(k) / 16 + 16);
        codes = reinterpret_cast<unsigned char *>(inverses + 2 * (whole_blocks(k) / 32 + 16));
    }
};

// Of codes: from sums of 16 to those of pieces.
static void sums_of_pieces(const int32_t *__restrict sums, int64_t sixteenths, int64_t pieces, int32_t *__restrict to) {
    for (int64_t p = 0; p < pieces; p++) {
        int32_t sum = 0;
        for (int64_t j = 0; j < sixteenths; j++) sum += sums[p * sixteenths + j];
        to[p] = sum;
    }
}

// What a row of x is for the products, once its codes and scales are there.
static void finish_row(const Cuts &cuts, [[maybe_unused]] bool in_tile, int32_t *sixteenths, unsigned char *to) {
    const int8_t *codes = reinterpret_cast<const int8_t *>(to);
    int32_t *starts = reinterpret_cast<int32_t *>(to + cuts.starts);
    float *weights = reinterpret_cast<float *>(to + cuts.weights), *scales = reinterpret_cast<float *>(to + cuts.scales);
    const int64_t padded = whole_blocks(cuts.k), pieces = cuts.pieces, units = cuts.units;
    // A group of 16 columns has half a scale's columns.
    if (cuts.x_scales && cuts.piece < 32)
        for (int64_t p = pieces; p--;) scales[p] = scales[p * cuts.piece / 32];
    if (cuts.piece == 32) {
        sums_of_32(codes, padded, starts);
    } else {
        sums_of_16(codes, padded, sixteenths);
        sums_of_pieces(sixteenths, cuts.piece / 16, pieces, starts);
    }
    if (cuts.minimums && units == pieces) {
        for (int64_t u = 0; u < units; u += W) {
            const F sums = convert(load_as<I>(starts + u));
            store(weights + u, cuts.x_scales ? sums * load(scales + u) : sums);
        }
    } else if (cuts.minimums) {
        const int64_t unit_pieces = cuts.unit / cuts.piece;
        for (int64_t u = 0; u < units; u++) {
            float weight = 0;
            for (int64_t p = u * unit_pieces; p < (u + 1) * unit_pieces; p++)
                weight += cuts.x_scales ? float(starts[p]) * scales[p] : float(starts[p]);
            weights[u] = weight;
        }
    }
    for (int64_t p = 0; p < pieces; p += W) {
        const U offsets = load_as<U>(starts + p) * uint32_t(-cuts.zero);  // beyond the last piece of anything
        std::memcpy(starts + p, &offsets, sizeof offsets);
    }
#if OPSOCKET_SHORT_SUMS
    if (cuts.is_wide && in_tile) widen_row(cuts, to);
    else if (cuts.is_wide) split_row_codes(to, padded, cuts.to_upper());
#endif
}

// `count` rows of x with a scale for each 32 columns, row i from x[i * stride] on. The next row's scales come before a
// row's codes, which do not wait for quotients then.
template <int32_t T>
static void quantize_by_32(const Cuts &cuts, bool in_tile, const void *x, int64_t stride, int64_t count,
                           const Scratch &scratch, unsigned char *to) {
    const int64_t n = whole_blocks(cuts.k);
    float *inverses = scratch.inverses, *following = inverses + n / 32 + 16;
    auto scales_of = [&](int64_t row) { return reinterpret_cast<float *>(to + row * cuts.row_bytes + cuts.scales); };
    bool extreme = scales_by_32<T>(x, 0, n, scales_of(0), inverses);
    for (int64_t row = 0; row < count; row++) {
        const bool next =
            row + 1 < count && scales_by_32<T>(x, (row + 1) * stride, n, scales_of(row + 1), following);
        unsigned char *here = to + row * cuts.row_bytes;
        codes_by_32<T>(x, row * stride, n, scales_of(row), inverses, extreme, reinterpret_cast<int8_t *>(here));
        finish_row(cuts, in_tile, scratch.sums, here);
        std::swap(inverses, following);
        extreme = next;
    }
}

// `count` rows of x, from row `first` on, which meet the weight in a tile or not.
static void quantize_rows(const MatmulA8 &c, const PanelWeight &w, const Cuts &cuts, bool in_tile, int64_t first,
                          int64_t count, const Scratch &scratch, unsigned char *to) {
    if (count <= 0) return;
    if (cuts.x_scales && c.x_dtype != F16 && c.k % ROW_BLOCK == 0 && !w.permutation) {
        const void *x = at(c.x, first * c.x_stride, c.x_dtype);
        if (c.x_dtype == F32) quantize_by_32<F32>(cuts, in_tile, x, c.x_stride, count, scratch, to);
        else quantize_by_32<BF16>(cuts, in_tile, x, c.x_stride, count, scratch, to);
        return;
    }
    for (int64_t row = first; row < first + count; row++, to += cuts.row_bytes) {
        const float *x = as_f32_row(c.x, row * c.x_stride, c.k, c.x_dtype, w.permutation, scratch.row);
        if (cuts.x_scales) {
            quantize_by_32<F32>(cuts, in_tile, x, 0, 1, scratch, to);
            continue;
        }
        float *scale = reinterpret_cast<float *>(to + cuts.scales);
        *scale = largest_magnitude(x, whole_blocks(c.k)) / 127.0f;
        codes_of(x, whole_blocks(c.k), *scale, reinterpret_cast<int8_t *>(to));
        finish_row(cuts, in_tile, scratch.sums, to);
    }
}

#if !OPSOCKET_AMX
// ---- which loops

using Rows = void (*)(const Cuts &, const Units &, const unsigned char *, int64_t, Fetch &, Sink &);

template <int SUMS, int BITS, int SLAB, int PLACE, size_t... R>
static Rows by_units(int64_t rows, std::index_sequence<R...>) {
    constexpr Rows all[] = {rows_by_units<int(R) + 1, SUMS, BITS, SLAB, PLACE>...};
    return all[rows - 1];
}
template <int BITS, bool TILE, size_t... R> static Rows by_codes(int64_t rows, std::index_sequence<R...>) {
    constexpr Rows all[] = {rows_by_codes<int(R) + 1, BITS, TILE>...};
    return all[rows - 1];
}

// What there are loops for. weights.py packs nothing else: `CODED_SCALES` and `_bits`.
constexpr bool is_form(int bits, bool minimums, int slab, int place) {
    if (place == IN_TILE) return bits == 5 ? slab == 32 : bits != 6 || (slab == 16 && !minimums);
    if (bits == BY_TABLE) return slab == 32 && !minimums;
    if (place == IN_HEAD) return minimums ? (bits == 2 && slab == 16) || ((bits == 4 || bits == 5) && slab == 32)
                                          : (bits == 4 || bits == 6) && slab == 16;
    return bits == 5 ? slab == 32 : bits != 6;
}

template <int SUMS, int BITS, int PLACE> static Rows by_slab(const Cuts &c, int64_t rows) {
    constexpr bool minimums = SUMS & SUM_MINIMUMS;
    if constexpr (is_form(BITS, minimums, 32, PLACE))
        if (c.slab == 32) return by_units<SUMS, BITS, 32, PLACE>(rows, std::make_index_sequence<MOST>());
    if constexpr (is_form(BITS, minimums, 16, PLACE))
        if (c.slab == 16)
            return by_units<SUMS, BITS, 16, PLACE>(rows, std::make_index_sequence<most_rows(BITS, 16, PLACE)>());
    return nullptr;
}

static int sums_of(const Cuts &c) { return (c.minimums ? SUM_MINIMUMS : 0) | (c.x_scales ? SUM_X_SCALES : 0); }

template <int BITS, int PLACE> static Rows by_sums(const Cuts &c, int64_t rows) {
    switch (sums_of(c)) {
        case SUM_PLAIN: return by_slab<SUM_PLAIN, BITS, PLACE>(c, rows);
        case SUM_MINIMUMS: return by_slab<SUM_MINIMUMS, BITS, PLACE>(c, rows);
        case SUM_X_SCALES: return by_slab<SUM_X_SCALES, BITS, PLACE>(c, rows);
        default: return by_slab<SUM_BOTH, BITS, PLACE>(c, rows);
    }
}

template <int BITS> static Rows by_place(const Cuts &c, int64_t rows) {
    if (c.is_headed) return by_sums<BITS, IN_HEAD>(c, rows);
    if constexpr (low_bits(BITS) == BITS)
        if (c.one_sum) return by_codes<BITS, false>(rows, std::make_index_sequence<MOST>());
    return by_sums<BITS, AT_GROUP>(c, rows);
}

#if OPSOCKET_SHORT_SUMS
template <size_t... R> static Rows by_wide(const Cuts &c, int64_t rows, std::index_sequence<R...>) {
    constexpr Rows whole[] = {rows_by_wide_codes<int(R) + 1>...};
    constexpr Rows by_sums[][MOST_OF_WIDE] = {{rows_by_wide<int(R) + 1, SUM_PLAIN>...},
                                              {rows_by_wide<int(R) + 1, SUM_MINIMUMS>...},
                                              {rows_by_wide<int(R) + 1, SUM_X_SCALES>...},
                                              {rows_by_wide<int(R) + 1, SUM_BOTH>...}};
    return c.one_sum ? whole[rows - 1] : by_sums[sums_of(c)][rows - 1];
}
#endif

template <int BITS> static Rows in_tile_of(const Cuts &c, int64_t rows) {
    if constexpr (low_bits(BITS) == BITS)
        if (c.one_sum) return by_codes<BITS, true>(rows, std::make_index_sequence<MOST>());
    return by_sums<BITS, IN_TILE>(c, rows);
}

static Rows rows_for(const Cuts &c, bool in_tile, int64_t rows) {
    if (in_tile) {
#if OPSOCKET_SHORT_SUMS
        if (c.is_wide) return by_wide(c, rows, std::make_index_sequence<MOST_OF_WIDE>());
        if (c.bits == 5) return in_tile_of<5>(c, rows);
        if (c.bits == 6) return in_tile_of<6>(c, rows);
#endif
        return in_tile_of<4>(c, rows);
    }
    switch (c.bits) {
        case 2: return by_place<2>(c, rows);
        case 4: return by_place<4>(c, rows);
        case 5: return by_place<5>(c, rows);
        case 6: return by_place<6>(c, rows);
        case BY_TABLE: return by_place<BY_TABLE>(c, rows);
        default: return by_place<8>(c, rows);
    }
}

#endif

// ---- a block of rows times a panel

// Units of a panel as it is packed, from column `first` on.
static Units units_of(const Cuts &c, const unsigned char *panel, int64_t first, int64_t columns) {
    Units u{};
    u.column = first;
    if (c.one_sum) {
        u.codes = panel + first * PANEL * c.bits / 8, u.count = columns / 32;
        return u;
    }
    const int64_t group = first / c.group, unit = first / c.unit, piece = first / c.piece;
    u.count = columns / c.unit, u.group_units = c.group / c.unit, u.left = u.group_units - 1 - unit % u.group_units;
    u.bytes = c.unit * PANEL * stored_bits(c.bits) / 8, u.scale_bytes = c.scale_bytes, u.tail_bytes = c.group_bytes - c.code_bytes;
    u.codes = panel + group * c.group_bytes + unit % u.group_units * u.bytes, u.scale_dtype = c.scale_dtype;
    if (c.is_headed) u.codes = panel + first / c.block * c.block_bytes, u.block_units = c.block / c.unit;
    u.start = c.starts + piece * 4, u.weight = c.weights + unit * 4, u.scale = c.scales + piece * 4;
    return u;
}

// Columns that are multiplied at a time: as many parts as there have to be, all about as long.
static int64_t step_of(const Cuts &c) {
#if OPSOCKET_AMX
    constexpr int64_t CODES = ROW_BLOCK;  // a tile's; what the last has too many of meets zeros of x
#else
    constexpr int64_t CODES = 32;
#endif
    const int64_t unit = c.one_sum ? CODES : c.is_headed ? c.block : c.unit, units = (c.k + unit - 1) / unit;
    const int64_t parts = (units + c.tile_k() / unit - 1) / (c.tile_k() / unit);
    return (units + parts - 1) / parts * unit;
}

// Sums of rows and a panel -> y; from row first_row and column n on. scale: of the first row of x; factors: of columns.
template <int32_t T, bool IS_INTEGER>
static void write_panel(const MatmulA8 &c, const Cuts &cuts, int64_t first_row, int64_t n, int64_t rows, const float *sums,
                        const unsigned char *codes, const F *factor, const F *add) {
    for (int64_t r = 0; r < rows; r++) {
        const F scale = set(cuts.x_scales ? 1.0f : element<float>(codes + r * cuts.row_bytes + cuts.scales));
        const int64_t to = (first_row + r) * c.y_stride + n;
        for (int v = 0; v < VECTORS; v++) {
            F sum = load(sums + r * PANEL + v * W);
            if (IS_INTEGER) sum = convert(as_int(sum)) * factor[v];
            sum = sum * scale + add[v];
            const int64_t width = c.n - n - v * W;
            if (width >= W) store_t<T>(c.y, to + v * W, sum);
            else if (width > 0) store_part(c.y, to + v * W, T, sum, int(width));
        }
    }
}

// What some columns of a panel and all rows of a block come to: units as they are packed, and how much memory is asked for
// meanwhile.
struct Step {
    Units units;
    int64_t bytes, share, lines;
};

// Rows of one weight, and what is the same for all of its panels.
class Block {
    const MatmulA8 &c;
    const PanelWeight &w;
    const Cuts &cuts;
    const int64_t rows, first_row;  // the first of y
    const unsigned char *codes;     // of that row
    const float *bias;              // of this weight, or null
    const Scratch &scratch;
    const ByteTable table;
    const bool in_tile;
    int64_t parts, size, smaller;  // parts of rows, all of `size` but the first few, which are smaller by one
    bool at_once;                  // one step takes all of K
    int64_t columns;               // of a step
#if OPSOCKET_AMX
    TileProducts tiles;
#else
    Rows of_larger, of_smaller;
#endif
    Step whole;  // where one step takes all: that of the first panel

    Step step_from(const unsigned char *panel, int64_t first) const {
        Step step{};
        const int64_t count = std::min(columns, cuts.k - first), slabs = count / cuts.slab * PARTS;
        step.units = units_of(cuts, panel, first, count);
        step.units.table = table.bytes;
        // While some columns are multiplied memory is asked for those that come about as far on as these are long, in
        // equal shares between the rows.
        step.bytes = count * cuts.panel_bytes / cuts.k;
        step.share = parts == 1 ? step.bytes : step.bytes / parts / 64 * 64 + 64;
        step.lines = (step.share / 64 + slabs - 1) / slabs;
        return step;
    }

   public:
    Block(const MatmulA8 &c, const PanelWeight &w, const Cuts &cuts, int64_t rows, int64_t first_row,
          const unsigned char *codes, const float *bias, const Scratch &scratch)
        : c(c), w(w), cuts(cuts), rows(rows), first_row(first_row), codes(codes), bias(bias), scratch(scratch),
          table(w.panels), in_tile(meet_in_tile(cuts, rows))
#if OPSOCKET_AMX
          , tiles(cuts, codes, rows, scratch.codes)
#endif
    {
#if OPSOCKET_AMX
        const int64_t most = HIGH;
#else
        const int64_t most = in_tile && cuts.is_wide ? MOST_OF_WIDE : std::min(MOST, processor.rows_together);
#endif
        parts = (rows + most - 1) / most, size = (rows + parts - 1) / parts, smaller = size * parts - rows;
        at_once = parts == 1 && !in_tile && part_of(int(rows)) == VECTORS;
        columns = at_once ? cuts.k : step_of(cuts);
#if !OPSOCKET_AMX
        of_larger = rows_for(cuts, in_tile, size), of_smaller = smaller ? rows_for(cuts, in_tile, size - 1) : nullptr;
#endif
        if (at_once) whole = step_from(w.panels.data, 0);
    }

    // following: this thread's next panel, as is likely.
    void meet(int64_t panel, int64_t following) const {
        const unsigned char *from = w.panels.data + panel * cuts.panel_bytes;
        const int64_t n = panel * PANEL;
        F factor[VECTORS];
        Sink sink{nullptr, nullptr, c.y_stride, c.y_dtype, {}};
        for (int v = 0; v < VECTORS; v++) {
            const int count = int(std::clamp<int64_t>(c.n - n - v * W, 0, W));
            factor[v] = cuts.one_sum ? load_scale(from + cuts.code_bytes, v * W, cuts.scale_dtype) : set(1.0f);
            sink.add[v] = bias ? load_part(bias, n + v * W, F32, count) : set(0.0f);
        }
        const bool at_y = in_tile && !cuts.one_sum && n + PANEL <= c.n;
        for (int64_t k = 0; k < cuts.k; k += columns) {
            const bool is_last = k + columns >= cuts.k;
            Step step = at_once ? whole : step_from(from, k);
            Units &units = step.units;
            if (at_once) units.codes += panel * cuts.panel_bytes;
            Fetch fetch{units.codes + (at_once ? AHEAD : step.bytes), nullptr, step.share, step.lines, rows > FEW};
            if (!at_once && is_last) fetch.next = w.panels.data + following * cuts.panel_bytes;
            if (in_tile) units = unpack(w.panels, cuts, units, *scratch.tile);
            sink.sums = scratch.y;
            if (is_last && at_y) sink.y = static_cast<unsigned char *>(at(c.y, first_row * c.y_stride + n, c.y_dtype));
#if OPSOCKET_AMX
            tiles.add(units, codes, fetch, sink);
#else
            if (smaller) of_smaller(cuts, units, codes, smaller, fetch, sink);
            of_larger(cuts, units, codes + smaller * (size - 1) * cuts.row_bytes, parts - smaller, fetch, sink);
#endif
        }
        if (at_y) return;
        auto write = [&](auto to) { to(c, cuts, first_row, n, rows, scratch.y, codes, factor, sink.add); };
        if (c.y_dtype == F32) write(cuts.one_sum ? write_panel<F32, true> : write_panel<F32, false>);
        else if (c.y_dtype == F16) write(cuts.one_sum ? write_panel<F16, true> : write_panel<F16, false>);
        else write(cuts.one_sum ? write_panel<BF16, true> : write_panel<BF16, false>);
    }
};

void matmul_a8(const Command *command, Worker &worker) {
    const MatmulA8 &c = *static_cast<const MatmulA8 *>(command);
    const Scratch scratch(worker.own, c.k);
    const int64_t panels = (c.n + PANEL - 1) / PANEL;
    // Offsets are read here for the first time, unless `checked="deep"`: wrong ones may give wrong rows, no more.
    const int64_t rows = c.offsets ? std::clamp(c.offsets[c.experts], int64_t(0), c.rows) : c.rows;
#if OPSOCKET_AMX
    int64_t with_rows = !c.offsets;  // weights
    for (int64_t e = 0; c.offsets && e < c.experts; e++) with_rows += c.offsets[e] < c.offsets[e + 1];
    if (rows <= FEW_BY_TILES * with_rows) return avx512_vnni::matmul_a8(command, worker);
#endif
    if (rows == 1 && !c.offsets) {
        const Cuts cuts = cuts_of(c.weights[0].panels, c.x_group);
        int64_t begin, end;
        worker.share(panels, begin, end);
        if (begin == end) return;
        quantize_rows(c, c.weights[0], cuts, false, 0, 1, scratch, scratch.codes);
        const Block row(c, c.weights[0], cuts, 1, 0, scratch.codes, c.bias, scratch);
        for (int64_t panel = begin; panel < end; panel++) row.meet(panel, panel + 1);
        return;
    }
    int64_t row_bytes = 0, most = MAX_BLOCK_ROWS;
    for (int64_t e = 0; e < c.experts; e++) {
        const Cuts cuts = cuts_of(c.weights[e].panels, c.x_group);
        row_bytes = std::max(row_bytes, cuts.row_bytes);
#if OPSOCKET_AMX
        most = std::min(most, HighRows::most(cuts, OWN_BYTES - size_t(scratch.codes - worker.own)));
#endif
    }
    if (!row_bytes) return;
#if OPSOCKET_AMX
    if (!most) return avx512_vnni::matmul_a8(command, worker);
    const Tiles tiles;
#endif
    most = std::min(most, std::max(BLOCK_BYTES / row_bytes, BLOCK_ROWS));
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
            const int64_t from = std::max(begin, mine);
            quantize_rows(c, c.weights[e], cuts, meet_in_tile(cuts, end - begin), from, std::min(end, others) - from,
                          scratch, worker.shared + (from - first) * row_bytes);
            return true;
        });
        auto blocks_of = [&](int64_t count) { return (count + most - 1) / most; };
        if (!c.offsets && last - first >= OWN_ROWS * worker.count) {
            const Cuts cuts = cuts_of(c.weights[0].panels, c.x_group);
            const int64_t count = others - mine, blocks = blocks_of(count);
            for (int64_t number = 0; number < blocks; number++) {
                const int64_t from = mine + count * number / blocks, to = mine + count * (number + 1) / blocks;
                const Block block(c, c.weights[0], cuts, to - from, from, worker.shared + (from - first) * row_bytes, c.bias, scratch);
                for (int64_t panel = 0; panel < panels; panel++) block.meet(panel, panel + 1);
            }
            continue;
        }
        worker.barrier();
        // A panel takes as long as its rows, and as some more do for its memory.
        auto cost_of = [&](int64_t count) { return panels * (count + blocks_of(count) * (FEW / 2)); };
        int64_t total = 0, cost = 0, met = 0;
        each_expert([&](int64_t, const Cuts &, int64_t begin, int64_t end) {
            total += blocks_of(end - begin) * panels, cost += cost_of(end - begin), met++;
            return true;
        });
        // Piece by piece: a panel with a block of the rows that meet it. Pieces [start, stop) of weight e.
        auto run_pieces = [&](int64_t e, const Cuts &cuts, int64_t begin, int64_t end, int64_t start, int64_t stop, int64_t next) {
            const int64_t blocks = blocks_of(end - begin);
            while (start < stop) {
                const int64_t number = start / panels, last_piece = std::min(stop, (number + 1) * panels);
                const int64_t from = begin + (end - begin) * number / blocks, to = begin + (end - begin) * (number + 1) / blocks;
                const Block block(c, c.weights[e], cuts, to - from, from, worker.shared + (from - first) * row_bytes,
                                  c.bias ? c.bias + e * c.n : nullptr, scratch);
                for (; start < last_piece; start++) block.meet(start - number * panels, start - number * panels + next);
            }
        };
        if (pass >= COUNTERS || last - first <= FEW_EACH * met) {
            // Few rows: panels that stand one behind the other, so that memory is asked for ahead.
            Shares shares(worker, cost);
            each_expert([&](int64_t e, const Cuts &cuts, int64_t begin, int64_t end) {
                int64_t start, stop;
                shares.take(blocks_of(end - begin) * panels, cost_of(end - begin), start, stop);
                // What the weight before has asked for ahead was not this one's.
                const uint8_t *data = c.weights[e].panels.data + start % panels * cuts.panel_bytes;
                for (int64_t i = 0; i < std::min(AHEAD, cuts.panel_bytes) && start < stop; i += 64) ask_for_line(data + i);
                run_pieces(e, cuts, begin, end, start, stop, 1);
                return !shares.are_taken();
            });
            continue;
        }
        // Many: whoever is free takes the next.
        for (int64_t number; (number = worker.next(pass, total)) >= 0;) {
            int64_t piece = number;
            each_expert([&](int64_t e, const Cuts &cuts, int64_t begin, int64_t end) {
                const int64_t pieces = blocks_of(end - begin) * panels;
                if (piece < pieces) run_pieces(e, cuts, begin, end, piece, piece + 1, worker.count);
                piece -= pieces;
                return piece >= 0;
            });
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
#endif
