// matmul_a16 of many rows by tiles of AMX. A thread splits rows for itself, in its own memory, as many as stay in its caches,
// and all of its panels meet them there.
#include "kernels.h"
#if OPSOCKET_AMX
#include "matmul_a16_amx.h"
#include "shares.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

namespace {

constexpr int64_t MEMORY_ROWS = 16;         // as long as whose products a panel's memory and codes take
constexpr int64_t OWN_ROWS = 48;            // of each thread: from so many on it multiplies its own, as in matmul_a8.cpp
constexpr int64_t MOST_BLOCKS = 24;         // of 16 rows
constexpr int64_t CACHED_BYTES = 1280 << 10;  // of rows, of a level 2 cache's 2 MB
constexpr int64_t ENOUGH_BLOCKS = 8;        // for as many it takes no longer to read a weight than to multiply them
constexpr int64_t LEAST_K = 1024;           // of rows at a time: sums that wait for more of K take their time too

int64_t blocks_of(int64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

// Rows of each weight, on average, up to which other loops are as fast.
int64_t few_by_tiles(const MatmulA16 &c) { return c.float_dtype == BF16 ? 4 : c.float_dtype == F16 ? 12 : c.x_dtype == F32 ? 10 : 8; }

// Floats of 24 bits are three parts, by which those of 16 take as long as they do in f32.
bool by_tiles(const MatmulA16 &c) { return c.float_dtype == F16 ? c.x_dtype != F32 : c.float_dtype != F32; }

// Whether codes become bf16 numbers of a weight, which need no scales behind their products.
bool are_rounded(const MatmulA16 &c) { return c.float_dtype < 0 && c.bf16_weights && c.x_dtype == BF16; }

Steps steps_of(const MatmulA16 &c, int64_t expert) {
    if (are_rounded(c)) return Steps::of_floats(c.weights[expert].panels.k, 1);
    return c.float_dtype >= 0 ? Steps::of_floats(c.k, c.float_dtype == F16 ? 2 : 1) : Steps(c.weights[expert].panels);
}

int64_t panels_of(const MatmulA16 &c) { return (c.n + PANEL - 1) / PANEL; }

// Where sums of a part of K wait for the rest: in y, or where rows as f32 would be, if there is a place for those.
bool can_wait(const MatmulA16 &c) { return c.y_dtype == F32 || (c.x_dtype != F32 && panels_of(c) * PANEL <= whole_blocks(c.k)); }

// Rows and k of them that are split at a time.
struct Cut {
    int64_t blocks, k;  // blocks: 0 where there is no room for one

    Cut(const MatmulA16 &c, const Steps &s, int64_t rows);
};

// A thread's memory. Behind it: f32 of a row, and for each block of rows its totals, where there are minimums, and its parts.
struct Own {
    Unpacked unpacked;
    alignas(64) float sums[MOST_BLOCKS * TILE_ROWS * PANEL];
    float down[MOST_BLOCKS * TILE_ROWS];  // what a row's products are multiplied with
};

int64_t totals_bytes(const Steps &s, int64_t k) { return s.minimums ? k / s.unit * TILE_ROWS * 4 : 0; }

Cut::Cut(const MatmulA16 &c, const Steps &s, int64_t rows) : k(s.k) {
    const int64_t row_bytes = 2 * parts_of(c.x_dtype), wanted = std::min(blocks_of(rows), MOST_BLOCKS);
    // A weight is read once for all blocks that there is room for: before these are few they have less of K.
    if (can_wait(c) && CACHED_BYTES / (TILE_ROWS * k * row_bytes) < std::min(wanted, ENOUGH_BLOCKS)) {
        const int64_t most = std::max(LEAST_K, CACHED_BYTES / (wanted * TILE_ROWS * row_bytes)), times = (s.k + most - 1) / most;
        k = std::min(s.k, ((s.k + times - 1) / times + s.step - 1) / s.step * s.step);
    }
    const int64_t block = TILE_ROWS * k * row_bytes + totals_bytes(s, k);
    const int64_t room = int64_t(OWN_BYTES) - int64_t(sizeof(Own)) - whole_blocks(c.k) * 4;
    blocks = std::min({room / block, std::max<int64_t>(1, CACHED_BYTES / block), MOST_BLOCKS});
}

// Rows of a weight.
class Rows {
    const MatmulA16 &c;
    const PanelWeight &weight;
    const float *bias;
    const Steps steps;
    const Cut cut;
    const int64_t parts;
    Own &own;
    float *const buffer, *const totals, *const waiting;  // waiting: [panel][row][32], or null: in y
    PartTiles tiles;
    int64_t first = 0, count = 0, begin = 0, end = 0;  // rows, and k of them, that are split
    UnpackCodes unpack;
    AddProducts add;

    int64_t units() const { return (end - begin) / steps.unit; }

    void split() {
        const SplitRow split = splitting(c.x_dtype);
        tiles.k = end - begin;
        if (count % TILE_ROWS) {
            std::memset(tiles.memory + count / TILE_ROWS * tiles.block_bytes(), 0, size_t(tiles.block_bytes()));
            if (steps.minimums) std::memset(totals + count / TILE_ROWS * units() * TILE_ROWS, 0, size_t(units()) * TILE_ROWS * 4);
        }
        for (int64_t r = 0; r < count; r++) {
            own.down[r] = split(c.x, (first + r) * c.x_stride, c.k, begin, weight.permutation, buffer, tiles, r);
            if (!steps.minimums) continue;
            float *to = totals + r / TILE_ROWS * units() * TILE_ROWS + r % TILE_ROWS;
            const unsigned char *row = tiles.row(r);
            for (int64_t unit = 0; unit < units(); unit++) {
                F total = set(0.0f);
                for (int64_t k = 0; k < steps.unit; k += steps.tile_k, row += parts * tiles.tile_bytes())
                    for (int64_t i = 0; i < steps.tile_k; i += W) {
                        F x = load_bf16(row + i * 2);
                        for (int64_t p = 1; p < parts; p++) x = x + load_bf16(row + p * tiles.tile_bytes() + i * 2);
                        total = total + x;
                    }
                to[unit * TILE_ROWS] = sum(total);
            }
        }
    }

    const unsigned char *panel_at(int64_t number) const {
        const int64_t bytes = c.float_dtype == BF16 ? (c.k + 1) / 2 * PANEL * 4
                              : c.float_dtype == F16 ? c.k * PANEL * 2 : weight.panels.panel_bytes();
        return weight.panels.data + number * bytes;
    }

    Factor step_from(const unsigned char *panel, int64_t k, int64_t length) {
        if (are_rounded(c)) {
            round_step(weight.panels, unpack, panel, k, length, own.unpacked.pairs);
            return {own.unpacked.pairs, nullptr, 1, length / steps.tile_k, false};
        }
        if (c.float_dtype < 0) {
            unpack_step(weight.panels, steps, unpack, panel, k, length, own.unpacked);
            return {own.unpacked.pairs, own.unpacked.scales, length / steps.unit, steps.unit / steps.tile_k, false};
        }
        const unsigned char *pairs = panel + k * PANEL * 2;
        if (c.float_dtype == F16) {
            split_halves(pairs, c.k - k, length, own.unpacked);
            return {own.unpacked.pairs, nullptr, 2, length / steps.tile_k, true};
        }
        if (k + length > c.k) {  // tiles end where the panel does
            const size_t bytes = size_t((c.k + 1) / 2 - k / 2) * PANEL * 4;
            std::memcpy(own.unpacked.pairs, pairs, bytes);
            std::memset(own.unpacked.pairs + bytes, 0, size_t(length) * PANEL * 2 - bytes);
            pairs = own.unpacked.pairs;
        }
        return {pairs, nullptr, 1, length / steps.tile_k, false};
    }

    // While rows meet one step the next is asked for: it comes from memory.
    void multiply(int64_t number) {
        const unsigned char *panel = panel_at(number);
        const int64_t panel_bytes = panel_at(1) - panel_at(0), all = blocks_of(count);
        Block blocks[MOST_BLOCKS];
        for (int64_t k = begin; k < end; k += steps.step) {
            const int64_t length = std::min(steps.step, end - k);
            const Factor factor = step_from(panel, k, length);
            for (int64_t b = 0; b < all; b++)
                blocks[b] = {tiles.memory + b * tiles.block_bytes() + (k - begin) * TILE_ROWS * 2 * parts,
                             steps.minimums ? totals + (b * units() + (k - begin) / steps.unit) * TILE_ROWS : nullptr,
                             own.sums + b * TILE_ROWS * PANEL};
            const unsigned char *next = k + length < end ? panel + panel_bytes * (k + length) / steps.k
                                                         : panel + panel_bytes + panel_bytes * begin / steps.k;
            Ask ask{next, next + panel_bytes * length / steps.k, 0};
            ask.lines = (ask.end - ask.next) / (64 * all * (length / steps.tile_k)) + 1;
            add(factor, blocks, all, steps.tile_k, k == begin, ask);
        }
        if (c.y_dtype == F32) write<F32>(number);
        else if (c.y_dtype == F16) write<F16>(number);
        else write<BF16>(number);
    }

    template <int32_t T> void write(int64_t number) {
        const int64_t column = number * PANEL;
        F add[VECTORS];
        int here[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            here[v] = int(std::clamp<int64_t>(c.n - column - v * W, 0, W));
            add[v] = bias && !begin ? load_part(bias, column + v * W, F32, here[v]) : set(-0.0f);
        }
        for (int64_t r = 0; r < count; r++) {
            const int64_t to = (first + r) * c.y_stride + column;
            F y[VECTORS];
            float *const wait = waiting + (number * c.rows + first + r) * PANEL;
            for (int v = 0; v < VECTORS; v++) {
                if (begin) add[v] = waiting ? load(wait + v * W) : load_part(c.y, to + v * W, T, here[v]);
                y[v] = load(own.sums + r * PANEL + v * W) * own.down[r] + add[v];
            }
            if (waiting && end < steps.k) {
                store(wait, y[0]), store(wait + W, y[1]);
                continue;
            }
            if (here[1] == W) store_two<T>(c.y, to, y[0], y[1]);
            else
                for (int v = 0; v < VECTORS; v++) store_part(c.y, to + v * W, T, y[v], here[v]);
        }
    }

   public:
    // rows: how many there are to be.
    Rows(const MatmulA16 &command, int64_t expert, int64_t rows, unsigned char *memory, unsigned char *shared)
        : c(command), weight(c.weights[expert]), bias(c.bias ? c.bias + expert * c.n : nullptr), steps(steps_of(c, expert)),
          cut(c, steps, rows), parts(parts_of(c.x_dtype)), own(*reinterpret_cast<Own *>(memory)),
          buffer(reinterpret_cast<float *>(memory + sizeof(Own))), totals(buffer + whole_blocks(c.k)),
          waiting(c.y_dtype == F32 ? nullptr : reinterpret_cast<float *>(shared)),
          tiles{reinterpret_cast<unsigned char *>(totals) + cut.blocks * totals_bytes(steps, cut.k), cut.k, steps.tile_k, parts},
          unpack(c.float_dtype < 0 ? unpacking(weight.panels, are_rounded(c)) : nullptr), add(adding(parts, steps.minimums)) {
        use_tiles(steps.tile_k);
    }

    // `rows` of x from row `from` on, by panels [first_panel, last_panel).
    void run(int64_t from, int64_t rows, int64_t first_panel, int64_t last_panel) {
        const int64_t blocks = blocks_of(rows), passes = (blocks + cut.blocks - 1) / cut.blocks;
        for (int64_t pass = 0; pass < passes; pass++) {
            const int64_t start = blocks * pass / passes * TILE_ROWS, stop = std::min(rows, blocks * (pass + 1) / passes * TILE_ROWS);
            first = from + start, count = stop - start;
            for (begin = 0; begin < steps.k; begin = end) {
                end = std::min(steps.k, begin + cut.k);
                split();
                for (int64_t number = first_panel; number < last_panel; number++) multiply(number);
            }
        }
    }
};

}  // namespace

void matmul_a16(const Command *command, Worker &worker) {
    const MatmulA16 &c = *static_cast<const MatmulA16 *>(command);
    // Offsets are read here for the first time, unless `checked="deep"`: wrong ones may give wrong rows, no more.
    const int64_t rows = c.offsets ? std::clamp(c.offsets[c.experts], int64_t(0), c.rows) : c.rows;
    int64_t with_rows = 0;  // weights
    bool have_room = true;
    each_weight(c, rows, [&](int64_t expert, int64_t, int64_t count) {
        with_rows++, have_room = have_room && Cut(c, steps_of(c, expert), count).blocks > 0;
    });
    if (!by_tiles(c) || rows <= few_by_tiles(c) * with_rows || !have_room)
        return avx512_vnni::matmul_a16(command, worker);
    const Tiles tiles;
    const int64_t panels = panels_of(c);
    auto run = [&](int64_t expert, int64_t first, int64_t count, int64_t begin, int64_t end) {
        if (begin < end && count) Rows(c, expert, count, worker.own, worker.shared).run(first, count, begin, end);
    };
    if (!c.offsets && rows >= OWN_ROWS * worker.count) {
        int64_t begin, end;
        worker.share(blocks_of(rows), begin, end);
        return run(0, begin * TILE_ROWS, std::min(rows, end * TILE_ROWS) - begin * TILE_ROWS, 0, panels);
    }
    auto cost_of = [&](int64_t count) { return panels * (blocks_of(count) * TILE_ROWS + MEMORY_ROWS); };
    int64_t cost = 0;
    each_weight(c, rows, [&](int64_t, int64_t, int64_t count) { cost += cost_of(count); });
    Shares shares(worker, cost);
    each_weight(c, rows, [&](int64_t expert, int64_t first, int64_t count) {
        int64_t begin, end;
        shares.take(panels, cost_of(count), begin, end);
        run(expert, first, count, begin, end);
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
#endif
