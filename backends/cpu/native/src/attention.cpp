// Attention of every kind over cached or contiguous keys.
//
// Sequences with few queries are bound by the bytes of their keys: all of their tiles of 16 keys, one sequence after the
// other, are one line that is cut into as many parts of equal length as there are threads, so that at most one sequence
// is shared by any two neighbours; their states are joined after a barrier (flash decoding: Dao et al. 2023). All
// other sequences are cut into items of some rows of one KV head, which threads take one by one, longest first.
#include "attention_amx.h"
#include "attention_part.h"
#include "attention_tile.h"
#include "kernels.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Pieces of a thread's own memory, one after the other.
struct Arena {
    unsigned char *at;
    template <class T> T *take(int64_t count) {
        T *piece = reinterpret_cast<T *>(at);
        at += aligned(count * int64_t(sizeof(T)));
        return piece;
    }
};

// The keys that some query of a sequence sees, from a multiple of 16 on.
struct Span {
    int64_t first, last;
    int64_t tiles() const { return std::max<int64_t>(1, (last - first + TILE - 1) / TILE); }
};

Span span_of(const Attention &c, int64_t sequence, int64_t queries) {
    int64_t low = INT64_MAX, high = 0;
    for (int64_t i = 0; i < queries; i++) {
        Row row = make_row(c, sequence, i);
        if (row.low >= row.high) continue;
        low = std::min<int64_t>(low, row.low);
        high = std::max<int64_t>(high, row.high);
    }
    if (high == 0) return {0, 0};
    return {low / TILE * TILE, high};
}

int64_t queries_of(const Attention &c, int64_t sequence) {
    return c.batch->q_indptr[sequence + 1] - c.batch->q_indptr[sequence];
}

bool is_split(const Attention &c, int64_t queries) { return queries > 0 && queries <= c.split_queries; }

void clear(const Attention &c, int64_t rows, float *acc, float *top, float *total) {
    std::memset(acc, 0, size_t(rows * out_width(c)) * 4);
    std::fill(top, top + rows, -INFINITY);
    std::fill(total, total + rows, 0.0f);
}

// ---- sequences of few queries

// A state of all rows of a split sequence in the command's workspace: two of each thread, of what it shares with the
// thread before it and with the one after.
struct Slot {
    float *acc, *top, *total;
};

Slot slot_of(const Attention &c, unsigned char *workspace, int thread, int which) {
    int64_t rows = int64_t(c.split_queries) * c.q_heads;
    int64_t floats = rows * out_width(c) + aligned(rows * 4) / 4 * 2;
    float *base = reinterpret_cast<float *>(workspace) + (thread * 2 + which) * floats;
    return {base, base + rows * out_width(c), base + rows * out_width(c) + aligned(rows * 4) / 4};
}

void attend_part_by_tiles(const Part &part) {
    const Attention &c = part.command;
    Stages stage = stages(c);
    int64_t group = c.q_heads / c.kv_heads * part.queries, width = q_width(c, stage);
    Arena arena{part.scratch};
    unsigned char *scratch = arena.take<unsigned char>(tile_scratch(c));
    uint16_t *pairs = arena.take<uint16_t>(MOST_ROWS * width);
    int64_t token = c.batch->q_indptr[part.sequence];
    for (int64_t head = 0; head < c.kv_heads; head++) {
        KeySource source(c, part.sequence, head);
        for (int64_t r = head * group; r < (head + 1) * group; r += MOST_ROWS) {
            int64_t count = std::min(MOST_ROWS, (head + 1) * group - r);
            const void *q = part.q + r * c.dim_qk;
            if (stage.scores == PRODUCT_BF16) {
                for (int64_t i = 0; i < count; i++)
                    take_q(c, true, token + (r + i) % part.queries, (r + i) / part.queries, pairs + i * width);
                q = pairs;
            }
            Rows rows{count, part.row + r, q, width, part.acc + r * out_width(c), part.top + r, part.total + r};
            attend_tiles(source, rows, part.first, part.last, stage, scratch);
        }
    }
}

// Keys [first, last) of a sequence, into a state.
void compute_part(const Attention &c, int64_t sequence, int64_t queries, Span keys, Slot state, Arena arena) {
    int64_t rows = queries * c.q_heads, token = c.batch->q_indptr[sequence];
    Row *row = arena.take<Row>(rows);
    float *q = arena.take<float>(rows * c.dim_qk);
    for (int64_t i = 0; i < queries; i++) {
        Row shared = make_row(c, sequence, i);
        for (int64_t head = 0; head < c.q_heads; head++) {
            int64_t r = head * queries + i;
            row[r] = shared;
            if (c.slopes) row[r].slope = c.slopes[head];
            take_q(c, false, token + i, head, q + r * c.dim_qk);
        }
    }
    clear(c, rows, state.acc, state.top, state.total);
    if (keys.first >= keys.last) return;
    const int32_t *blocks = c.cache.k.data ? c.batch->block_table + sequence * c.batch->table_width : nullptr;
    Part part{c, sequence, blocks, int32_t(keys.first), int32_t(keys.last), int32_t(queries),
              q, row, state.acc, state.top, state.total, arena.at};
    if (decodes_part(part)) decode_part(part);
    else attend_part_by_tiles(part);
}

void finish_rows(const Attention &c, int64_t sequence, int64_t queries, const Slot &state) {
    for (int64_t r = 0; r < queries * c.q_heads; r++)
        finish_row(c, c.batch->q_indptr[sequence] + r % queries, r / queries, state.acc + r * out_width(c),
                   state.top[r], state.total[r]);
}

// Where the line of all split sequences' tiles is cut: thread t has [cut(t), cut(t + 1)).
struct Line {
    int64_t tiles = 0;
    int threads;
    int64_t cut(int thread) const { return tiles * thread / threads; }
    // The thread that has a tile.
    int owner(int64_t tile) const {
        int thread = int(tile * threads / tiles);
        while (cut(thread + 1) <= tile) thread++;
        return thread;
    }
};

// This thread's part of the line. Whether any sequence is shared between threads.
bool compute_parts(const Attention &c, const Line &line, Worker &worker) {
    int64_t begin = line.cut(worker.index), end = line.cut(worker.index + 1), at = 0;
    bool shared = false;
    for (int64_t s = 0; s < c.batch->sequences; s++) {
        int64_t queries = queries_of(c, s);
        if (!is_split(c, queries)) continue;
        Span span = span_of(c, s, queries);
        int64_t next = at + span.tiles(), from = std::max(begin, at), to = std::min(end, next);
        shared = shared || line.owner(at) != line.owner(next - 1);
        if (from < to) {
            Arena arena{worker.own};
            bool whole = from == at && to == next;
            Slot state;
            if (whole) {
                int64_t rows = queries * c.q_heads;
                float *acc = arena.take<float>(rows * out_width(c));
                float *top = arena.take<float>(rows), *total = arena.take<float>(rows);
                state = {acc, top, total};
            } else {
                state = slot_of(c, worker.shared, worker.index, from > at ? 0 : 1);
            }
            Span keys{span.first + (from - at) * TILE, std::min(span.last, span.first + (to - at) * TILE)};
            compute_part(c, s, queries, keys, state, arena);
            if (whole) finish_rows(c, s, queries, state);
        }
        at = next;
    }
    return shared;
}

// Joins the parts of a row: those of threads [first, last] of a sequence that begins at tile `at`.
void join_row(const Attention &c, const Line &line, unsigned char *workspace, int64_t at, int first, int last,
              int64_t token, int64_t head, int64_t r, float *acc) {
    int64_t width = out_width(c);
    float top = -INFINITY, total = 0;
    for (int t = first; t <= last; t++)
        top = std::max(top, slot_of(c, workspace, t, line.cut(t) > at ? 0 : 1).top[r]);
    std::memset(acc, 0, size_t(width) * 4);
    for (int t = first; t <= last; t++) {
        Slot part = slot_of(c, workspace, t, line.cut(t) > at ? 0 : 1);
        if (part.total[r] == 0) continue;
        float factor = std::exp(part.top[r] - top);
        total += part.total[r] * factor;
        for (int64_t d = 0; d < width; d += W) store(acc + d, load(acc + d) + load(part.acc + r * width + d) * factor);
    }
    finish_row(c, token, head, acc, top, total);
}

void join_parts(const Attention &c, const Line &line, Worker &worker) {
    float *acc = reinterpret_cast<float *>(worker.own);
    int64_t at = 0;
    for (int64_t s = 0; s < c.batch->sequences; s++) {
        int64_t queries = queries_of(c, s);
        if (!is_split(c, queries)) continue;
        int64_t next = at + span_of(c, s, queries).tiles(), begin, end;
        int first = line.owner(at), last = line.owner(next - 1);
        worker.share(queries * c.q_heads, begin, end);
        if (first != last)
            for (int64_t r = begin; r < end; r++)
                join_row(c, line, worker.shared, at, first, last, c.batch->q_indptr[s] + r % queries, r / queries, r, acc);
        at = next;
    }
}

// ---- all other sequences

// Rows [begin, end) of one KV head of one sequence; row i * group + g is head g of the group, query i.
struct Item {
    int64_t sequence, head, begin, end;
};

int64_t items_of(const Attention &c, int64_t queries, int64_t rows) {
    if (queries <= c.split_queries) return 0;
    return (queries * (c.q_heads / c.kv_heads) + rows - 1) / rows * c.kv_heads;
}

int64_t all_items(const Attention &c, int64_t rows) {
    int64_t count = 0;
    for (int64_t s = 0; s < c.batch->sequences; s++) count += items_of(c, queries_of(c, s), rows);
    return count;
}

void compute_item(const Attention &c, const Item &item, Stages stage, unsigned char *own) {
    int64_t group = c.q_heads / c.kv_heads, count = item.end - item.begin, width = q_width(c, stage);
    int64_t token = c.batch->q_indptr[item.sequence];
    Arena arena{own};
    unsigned char *scratch = arena.take<unsigned char>(tile_scratch(c));
    Row *row = arena.take<Row>(count);
    const bool pairs = stage.scores == PRODUCT_BF16;
    int64_t q_bytes = width * (pairs ? 2 : 4);
    unsigned char *q = arena.take<unsigned char>(count * q_bytes);
    float *acc = arena.take<float>(count * out_width(c));
    float *top = arena.take<float>(count), *total = arena.take<float>(count);
    clear(c, count, acc, top, total);
    int64_t low = INT64_MAX, high = 0;
    int64_t i = item.begin / group, g = item.begin % group;
    for (int64_t r = 0; r < count; r++) {
        int64_t head = item.head * group + g;
        row[r] = r && g ? row[r - 1] : make_row(c, item.sequence, i);
        if (c.slopes) row[r].slope = c.slopes[head];
        take_q(c, pairs, token + i, head, q + r * q_bytes);
        if (++g == group) g = 0, i++;
        if (row[r].low >= row[r].high) continue;
        low = std::min<int64_t>(low, row[r].low);
        high = std::max<int64_t>(high, row[r].high);
    }
    Rows rows{count, row, q, width, acc, top, total};
    if (high) attend_tiles(KeySource(c, item.sequence, item.head), rows, low / TILE * TILE, high, stage, scratch);
    i = item.begin / group, g = item.begin % group;
    for (int64_t r = 0; r < count; r++) {
        finish_row(c, token + i, item.head * group + g, acc + r * out_width(c), top[r], total[r]);
        if (++g == group) g = 0, i++;
    }
}

void compute_items(const Attention &c, Worker &worker) {
    Stages stage = stages(c);
    const int64_t q_bytes = q_width(c, stage) * (stage.scores == PRODUCT_BF16 ? 2 : 4);
    int64_t rows = MOST_ROWS, bytes = q_bytes + (1 + out_width(c)) * 4 + int64_t(sizeof(Row)) + 8;
    while (rows > BLOCK && tile_scratch(c) + rows * bytes + 1024 > int64_t(OWN_BYTES)) rows /= 2;
    int64_t count = all_items(c, rows);
    while (count && rows > 2 * BLOCK && count < 3 * worker.count) count = all_items(c, rows /= 2);
    if (!count) return;
    int64_t s = 0, before = 0, here = items_of(c, queries_of(c, 0), rows);
    for (int64_t i; (i = worker.next(0, count)) >= 0;) {
        while (i >= before + here) {
            before += here;
            s++;
            here = items_of(c, queries_of(c, s), rows);
        }
        int64_t all = queries_of(c, s) * (c.q_heads / c.kv_heads), pieces = here / c.kv_heads;
        int64_t piece = pieces - 1 - (i - before) / c.kv_heads;  // the last rows see most
        Item item{s, (i - before) % c.kv_heads, piece * rows, std::min(all, (piece + 1) * rows)};
        compute_item(c, item, stage, worker.own);
    }
}

}  // namespace

void attention(const Command *command, Worker &worker) {
    const Attention &c = *static_cast<const Attention *>(command);
#if OPSOCKET_AMX
    const Stages stage = stages(c);
    if (stage.scores != PRODUCT_BF16 || stage.values != PRODUCT_BF16) return avx512_vnni::attention(command, worker);
    const Tiles in_use;
#endif
    Line line{0, worker.count};
    for (int64_t s = 0; s < c.batch->sequences; s++) {
        int64_t queries = queries_of(c, s);
        if (is_split(c, queries)) line.tiles += span_of(c, s, queries).tiles();
    }
    bool shared = line.tiles && compute_parts(c, line, worker);
    compute_items(c, worker);
    if (!shared) return;
    worker.barrier();
    join_parts(c, line, worker);
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
