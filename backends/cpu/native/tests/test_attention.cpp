// Attention over caches of every code and over contiguous keys, against softmax in f64, key by key: both ways that a
// sequence can go, split over its keys (the decode kernels and the generic tiles) and in items of rows, with every
// knob. Bytes of tokens that no query sees are NaN.
#include "caches.h"

using namespace opsocket;
using test::Array, test::CachePair, test::KVFormat, test::Matrix, test::Random, test::Tiles;

#if OPSOCKET_AVX512 || OPSOCKET_AVX_VNNI
constexpr double UNIT_OF_PROBABILITIES = 0x1p-8;  // where they may be rounded to bf16; digits of them lose no more
#elif OPSOCKET_AVX2
constexpr double UNIT_OF_PROBABILITIES = 0x1p-9;  // by words of queries, which move no logit by more than 2^-10
#else
constexpr double UNIT_OF_PROBABILITIES = 0;
#endif

struct Case {
    KVFormat k, v;
    bool cached;
    int64_t q_heads, kv_heads, dim_qk, dim_vo, tiles;  // tiles: of a block
    int32_t q_dtype, kv_dtype, out_dtype, mask;
    int64_t window_left, window_right;
    float scale, softcap;
    bool alibi, sinks, lse, positions, bf16_probabilities;
    int32_t split_queries;
    float outlier = 0;           // a query's first element, which no cached key has; 0: as any other
    bool sparse_values = false;  // one cached value in 16 is not 0

    const char *text() const {
        static char buffer[300];
        std::snprintf(
            buffer, sizeof buffer,
            "%s K %d/%d V %d/%d, %d/%d heads of %d/%d, q %d out %d, mask %d, window %d %d, softcap %g%s%s, split %d",
            cached ? "cache" : "contiguous", k.code, k.granularity, v.code, v.granularity, int(q_heads), int(kv_heads),
            int(dim_qk), int(dim_vo), q_dtype, out_dtype, mask, int(std::min<int64_t>(window_left, 99999)),
            int(std::min<int64_t>(window_right, 99999)), double(softcap), alibi ? ", alibi" : "",
            sinks ? ", sinks" : "", split_queries);
        return buffer;
    }
};

struct Sequence {
    int64_t queries, keys;
};

// What a case runs over, in memory of its exact size.
class Scene {
   public:
    Scene(Random &random, const Case &c, const std::vector<Sequence> &sequences)
        : c(c),
          count(int64_t(sequences.size())),
          q_indptr(count + 1),
          kv_lens(count),
          kv_indptr(count + 1),
          q_start(count),
          mask_indptr(count + 1),
          cache{make_tiles(random, true, sequences), make_tiles(random, false, sequences)},
          q(Matrix::random(random, rows_of(sequences), c.q_heads * c.dim_qk, 6, c.q_dtype)),
          k(keys_of(sequences), c.kv_heads * c.dim_qk, 4, c.kv_dtype),
          v(keys_of(sequences), c.kv_heads * c.dim_vo, 0, c.kv_dtype) {
        int64_t most = 0, bytes = 0, first = 0;
        for (const Sequence &s : sequences) most = std::max(most, blocks_of(s.keys));
        width = c.cached ? most : 0;
        block_table = Array<int32_t>(c.cached ? count * width : 0, 0x7f);  // entries that are not used are no blocks
        std::vector<int32_t> free;
        for (int64_t b = 0; b < cache.k.blocks; b++) free.push_back(int32_t(b));
        for (size_t i = free.size(); i > 1; i--) std::swap(free[i - 1], free[size_t(random.below(int64_t(i)))]);
        q_indptr[0] = 0, kv_indptr[0] = 0, mask_indptr[0] = 0;
        for (int64_t s = 0; s < count; s++) {
            const Sequence &one = sequences[size_t(s)];
            q_indptr[s + 1] = int32_t(q_indptr[s] + one.queries), kv_lens[s] = int32_t(one.keys);
            kv_indptr[s + 1] = first += one.keys;
            mask_indptr[s + 1] = bytes += (one.queries * one.queries + 7) / 8;
            q_start[s] = one.keys - one.queries;
            for (int64_t b = 0; c.cached && b < blocks_of(one.keys); b++) {
                block_table[s * width + b] = free.back();
                free.pop_back();
            }
        }
        tree = Array<unsigned char>(c.mask == MASK_TREE ? bytes : 0);
        for (int64_t i = 0; i < tree.size(); i++) tree[i] = uint8_t(random.bits());
        q_positions = Array<int64_t>(c.positions ? q.rows : 0);
        for (int64_t s = 0; s < count && c.positions; s++)
            for (int64_t i = q_indptr[s]; i < q_indptr[s + 1]; i++) q_positions[i] = random.below(kv_lens[s] + 3);
        sinks = Array<float>(c.sinks ? c.q_heads : 0), slopes = Array<float>(c.alibi ? c.q_heads : 0);
        for (int64_t h = 0; h < sinks.size(); h++) sinks[h] = h % 4 == 3 ? -INFINITY : float(random.normal());
        for (int64_t h = 0; h < slopes.size(); h++) slopes[h] = std::ldexp(1.0f, -1 - int(h));
        fill_keys(random);
        for (int64_t i = 0; c.outlier && i < q.rows * c.q_heads; i++) q.set(i / c.q_heads, i % c.q_heads * c.dim_qk, double(c.outlier));
        for (int64_t i = 0; c.outlier && i < cache.k.slots() * c.kv_heads; i++)
            cache.k.set_code(i / c.kv_heads, i % c.kv_heads, 0, cache.k.zero());
        for (int64_t i = 0; c.sparse_values && i < cache.v.slots() * c.kv_heads; i++)
            for (int64_t d = 0; d < c.dim_vo; d++)
                if (random.below(16)) cache.v.set_code(i / c.kv_heads, i % c.kv_heads, d, cache.v.zero());
    }

    const Case &c;
    int64_t count, width = 0;
    Array<int32_t> q_indptr, kv_lens, block_table;
    Array<int64_t> kv_indptr, q_start, q_positions, mask_indptr;
    CachePair cache;
    Matrix q, k, v;
    Array<float> sinks, slopes;
    Array<unsigned char> tree;

    int64_t position(int64_t s, int64_t i) const { return c.positions ? q_positions[q_indptr[s] + i] : q_start[s] + i; }
    int64_t slot(int64_t s, int64_t j) const {
        const int64_t size = c.tiles * 16;
        return block_table[s * width + j / size] * size + j % size;
    }
    double key(int64_t s, int64_t j, int64_t head, int64_t d) const {
        return c.cached ? cache.k.value(slot(s, j), head, d) : k.at(kv_indptr[s] + j, head * c.dim_qk + d);
    }
    double value(int64_t s, int64_t j, int64_t head, int64_t d) const {
        return c.cached ? cache.v.value(slot(s, j), head, d) : v.at(kv_indptr[s] + j, head * c.dim_vo + d);
    }

    bool sees(int64_t s, int64_t i, int64_t j) const {
        const int64_t p = position(s, i), queries = q_indptr[s + 1] - q_indptr[s], history = kv_lens[s] - queries;
        if (c.window_left != INT64_MAX && j < p - c.window_left) return false;
        if (c.window_right != INT64_MAX && j > p + c.window_right) return false;
        if (c.mask != MASK_TREE || j < history) return true;
        const int64_t bit = i * queries + j - history;
        return tree[mask_indptr[s] + bit / 8] >> (bit % 8) & 1;
    }

   private:
    int64_t blocks_of(int64_t keys) const { return (keys + c.tiles * 16 - 1) / (c.tiles * 16); }
    static int64_t rows_of(const std::vector<Sequence> &sequences) {
        int64_t rows = 0;
        for (const Sequence &s : sequences) rows += s.queries;
        return rows;
    }
    int64_t keys_of(const std::vector<Sequence> &sequences) const {
        int64_t keys = 0;
        for (const Sequence &s : sequences) keys += s.keys;
        return c.cached ? 0 : keys;
    }
    Tiles make_tiles(Random &random, bool keys, const std::vector<Sequence> &sequences) const {
        int64_t blocks = 0;
        for (const Sequence &s : sequences) blocks += blocks_of(s.keys);
        return Tiles(random, keys ? c.k : c.v, keys, keys ? c.dim_qk : c.dim_vo, c.kv_heads, c.tiles,
                     c.cached ? blocks : 0);
    }
    // Keys that some query sees; all others stay NaN in memory.
    void fill_keys(Random &random) {
        for (int64_t s = 0; s < count; s++)
            for (int64_t j = 0; j < kv_lens[s]; j++) {
                bool seen = false;
                for (int64_t i = 0; i < q_indptr[s + 1] - q_indptr[s]; i++) seen |= sees(s, i, j);
                if (!seen) continue;
                if (c.cached) cache.k.fill(random, slot(s, j)), cache.v.fill(random, slot(s, j));
                for (int64_t d = 0; !c.cached && d < k.width; d++) k.set(kv_indptr[s] + j, d, random.normal());
                for (int64_t d = 0; !c.cached && d < v.width; d++) v.set(kv_indptr[s] + j, d, random.normal());
            }
    }
};

// The result of one query of one head, and the errors that f32 (or, where it is permitted, bf16) inside may leave.
struct Expected {
    std::vector<double> out, errors;
    double lse, lse_error;
};

static Expected expect(const Scene &x, int64_t s, int64_t i, int64_t head) {
    const Case &c = x.c;
    const int64_t kv_head = head / (c.q_heads / c.kv_heads), row = x.q_indptr[s] + i;
    std::vector<double> logits;
    std::vector<int64_t> keys;
    double worst = 0;
    for (int64_t j = 0; j < x.kv_lens[s]; j++) {
        if (!x.sees(s, i, j)) continue;
        double dot = 0, size = 0;
        for (int64_t d = 0; d < c.dim_qk; d++) {
            const double term = x.q.at(row, head * c.dim_qk + d) * x.key(s, j, kv_head, d);
            dot += term, size += std::fabs(term);
        }
        double logit = dot * double(c.scale);
        if (c.softcap != 0) logit = double(c.softcap) * std::tanh(logit / double(c.softcap));
        const double distance = std::fabs(double(j - x.position(s, i))),
                     bias = c.alibi ? double(x.slopes[head]) * distance : 0;
        worst = std::max(worst, test::UNIT * (size * std::fabs(double(c.scale)) * double(c.dim_qk + 8) +
                                              8 * (std::fabs(logit) + bias)));
        logits.push_back(logit - bias), keys.push_back(j);
    }
    const double sink = c.sinks ? double(x.sinks[head]) : -INFINITY;
    double top = sink, total = 0;
    for (double logit : logits) top = std::max(top, logit);
    if (top != -INFINITY) total = std::exp(sink - top);
    for (double logit : logits) total += std::exp(logit - top);
    const double lse = total > 0 ? top + std::log(total) : -INFINITY;
    std::vector<double> out(static_cast<size_t>(c.dim_vo)), errors(static_cast<size_t>(c.dim_vo));
    double spread = 0;
    for (double logit : logits) spread = std::max(spread, top - logit);
    const double relative =
        2 * worst + test::UNIT * (double(logits.size()) + 32 + 4 * std::fabs(top) + 2 * std::min(spread, 100.0));
    for (size_t n = 0; n < logits.size(); n++) {
        const double probability = std::exp(logits[n] - lse);
        for (int64_t d = 0; d < c.dim_vo; d++) {
            const double value = x.value(s, keys[n], kv_head, d), term = probability * value;
            out[size_t(d)] += term,
                errors[size_t(d)] += std::fabs(term) * (relative + (c.bf16_probabilities ? UNIT_OF_PROBABILITIES : 0)) +
                                     std::min(probability, 0x1p-126) * std::fabs(value);  // what underflows is 0
        }
    }
    return {out, errors, lse, relative};
}

static void check_case(Random &random, const Case &c, const std::vector<Sequence> &sequences) {
    const Scene x(random, c, sequences);
    const AttentionBatch batch{x.count,
                               x.width,
                               x.q_indptr.data(),
                               x.kv_lens.data(),
                               x.block_table.data(),
                               x.kv_indptr.data(),
                               x.q_start.data(),
                               c.positions ? x.q_positions.data() : nullptr,
                               x.mask_indptr.data()};
    Matrix out(x.q.rows, c.q_heads * c.dim_vo, 5, c.out_dtype), lse(x.q.rows, c.q_heads, 1, F32);
    Attention command{};
    command.op = OP_ATTENTION, command.wait = 1, command.batch = &batch;
    command.q = x.q.data(), command.q_stride = x.q.stride, command.out = out.data(), command.out_stride = out.stride;
    command.lse = c.lse ? static_cast<float *>(lse.data()) : nullptr, command.lse_stride = lse.stride;
    command.sinks = c.sinks ? x.sinks.data() : nullptr, command.slopes = c.alibi ? x.slopes.data() : nullptr;
    command.tree = c.mask == MASK_TREE ? x.tree.data() : nullptr;
    if (c.cached) command.cache = x.cache.facts();
    else command.k = x.k.data(), command.v = x.v.data(), command.k_stride = x.k.stride, command.v_stride = x.v.stride;
    command.window_left = c.window_left, command.window_right = c.window_right;
    command.q_heads = int32_t(c.q_heads), command.kv_heads = int32_t(c.kv_heads);
    command.dim_qk = int32_t(c.dim_qk), command.dim_vo = int32_t(c.dim_vo);
    command.q_dtype = c.q_dtype, command.kv_dtype = c.kv_dtype, command.out_dtype = c.out_dtype, command.mask = c.mask;
    command.scale = c.scale, command.softcap = c.softcap, command.bf16_probabilities = c.bf16_probabilities;
    command.split_queries = c.split_queries;
    const int64_t width = (c.dim_vo + 15) / 16 * 16, split_rows = c.split_queries * c.q_heads;
    const int64_t slot = 4 * (split_rows * width + 2 * ((split_rows + 15) / 16 * 16));  // attention.py
    std::vector<Expected> expected;
    for (int64_t s = 0; s < x.count; s++)
        for (int64_t i = 0; i < x.q_indptr[s + 1] - x.q_indptr[s]; i++)
            for (int64_t head = 0; head < c.q_heads; head++) expected.push_back(expect(x, s, i, head));
    for (int threads : {1, 2, 3}) {
        command.workspace = 2 * threads * slot;
        out.clear(), lse.clear();
        test::run(command, threads, c.text());
        CHECK(out.gaps_are_whole() && lse.gaps_are_whole(), "%s, %d threads: written between rows", c.text(), threads);
        for (int64_t s = 0; s < x.count; s++)
            for (int64_t i = 0; i < x.q_indptr[s + 1] - x.q_indptr[s]; i++)
                for (int64_t head = 0; head < c.q_heads; head++) {
                    const int64_t row = x.q_indptr[s] + i;
                    const Expected &want = expected[size_t(row * c.q_heads + head)];
                    for (int64_t d = 0; d < c.dim_vo; d++) {
                        const double y = out.at(row, head * c.dim_vo + d);
                        CHECK(test::near(y, want.out[size_t(d)], want.errors[size_t(d)], c.out_dtype),
                              "%s, %d threads, %d keys, query %d of sequence %d, head %d dim %d: %.9g, not %.9g",
                              c.text(), threads, x.kv_lens[s], int(i), int(s), int(head), int(d), y,
                              want.out[size_t(d)]);
                    }
                    if (c.lse)
                        CHECK(test::near(lse.at(row, head), want.lse, want.lse_error),
                              "%s, %d threads, query %d of sequence %d, head %d: LSE %.9g, not %.9g", c.text(), threads,
                              int(i), int(s), int(head), lse.at(row, head), want.lse);
                }
    }
}

static Case some_case(Random &random) {
    const int64_t groups[] = {1, 2, 3, 5, 9}, dims[] = {1, 8, 20, 24, 40, 64, 80},
                  windows[] = {0, 3, 17, 70, INT64_MAX, INT64_MAX};
    Case c{};
    c.cached = random.below(4) != 0;
    c.k = test::some_format(random, int32_t(random.below(KV_CODES))),
    c.v = test::some_format(random, int32_t(random.below(KV_CODES)));
    c.kv_heads = 1 + random.below(3), c.q_heads = c.kv_heads * groups[random.below(5)];
    c.dim_qk = dims[random.below(7)], c.dim_vo = dims[random.below(7)], c.tiles = 1 + random.below(3);
    c.q_dtype = int32_t(random.below(3)), c.kv_dtype = int32_t(random.below(3)), c.out_dtype = int32_t(random.below(3));
    c.mask = int32_t(random.below(3));
    c.window_left = windows[random.below(6)];
    c.window_right = c.mask == MASK_CAUSAL ? 0 : windows[random.below(6)];
    c.scale = 1 / std::sqrt(float(c.dim_qk)), c.softcap = random.below(3) ? 0 : 3;
    c.alibi = random.below(3) == 0, c.sinks = random.below(3) == 0, c.lse = random.below(2) != 0;
    c.positions = c.mask == MASK_TREE && (c.alibi || c.window_left != INT64_MAX || c.window_right != INT64_MAX);
    c.bf16_probabilities = random.below(2) != 0;
    const int32_t splits[] = {0, 1, 8};
    c.split_queries = splits[random.below(3)];
    return c;
}

// As many queries as attention.py splits at most.
static int32_t most_split(const Case &c) {
    const int64_t row = 4 * (c.dim_qk + (c.dim_vo + 15) / 16 * 16) + 64;
    return int32_t(std::min<int64_t>(8, (1 << 20) / (row * c.q_heads)));
}

static Sequence some_sequence(Random &random, const Case &c) {
    const int64_t queries[] = {0, 1, 1, 1, 2, 4, 7, 30}, keys[] = {0, 1, 15, 16, 17, 40, 64, 65, 130, 200};
    Sequence s{queries[random.below(8)], keys[random.below(10)]};
    if (c.mask == MASK_TREE) s.keys = std::max(s.keys, s.queries);
    return s;
}

// One query each over caches of every code: the decode kernels, whatever is drawn elsewhere.
static void decode(Random &random) {
    for (int32_t code = 0; code < KV_CODES; code++)
        for (int round = 0; round < 6; round++) {
            Case c = some_case(random);
            c.cached = true, c.mask = MASK_CAUSAL, c.window_right = 0, c.positions = false, c.split_queries = 1;
            c.k = test::some_format(random, code), c.v = test::some_format(random, code);
            if (round % 2 == 0) c.q_dtype = BF16, c.bf16_probabilities = true;
            // Weights that differ by more than 2^24: digits of them (digits.h) would not do.
            if (round >= 4) c.dim_qk = 40, c.scale = 3, c.softcap = 0;
            // A query of which digits would leave nothing but its largest element.
            if (round == 2 && OPSOCKET_LEVEL::kv_is_integer(code) && c.k.granularity != SCALE_CHANNEL) c.outlier = 0x1p20f;
            check_case(random, c, {{1, 1 + random.below(200)}, {1, 0}, {1, 64}, {0, 20}, {1, 1 + random.below(40)}});
        }
}

// Queries and weights of which the lowest digit (digits.h) counts, and such of which it does not: what comes from weights far
// below the largest is seen where the larger ones meet zeros.
static void lowest_digits(Random &random) {
    for (int32_t code : {KV_I8, KV_I4, KV_I2})
        for (int round = 0; round < 12; round++) {
            Case c = some_case(random);
            c.cached = true, c.mask = MASK_CAUSAL, c.window_left = INT64_MAX, c.window_right = 0, c.positions = false;
            c.split_queries = 1, c.softcap = 0, c.alibi = false, c.lse = round % 4 == 3;
            c.k = test::some_format(random, code), c.v = test::some_format(random, code);
            if (c.k.granularity == SCALE_CHANNEL) c.k.granularity = SCALE_TOKEN_HEAD;
            c.q_dtype = BF16, c.bf16_probabilities = true, c.out_dtype = F32, c.dim_qk = 40, c.dim_vo = 64;
            c.scale = round % 3 ? 0.4f : 0.1f, c.sparse_values = true;
            if (round % 2) c.outlier = 0x1p9f;
            check_case(random, c, {{1, 200}, {1, 64}, {1, 130}});
        }
}

// A few queries of a sequence over caches of every code, as verifying drafted tokens has them: rows of all blocks.
static void verify(Random &random) {
    const int64_t groups[] = {1, 2, 3, 4, 5, 7, 8};
    for (int32_t code = 0; code < KV_CODES; code++)
        for (int round = 0; round < 6; round++) {
            Case c = some_case(random);
            c.cached = true, c.split_queries = 8, c.kv_heads = 2, c.q_heads = 2 * groups[random.below(7)];
            c.mask = round % 3, c.positions = c.positions && c.mask == MASK_TREE;
            if (c.mask == MASK_CAUSAL) c.window_right = 0;
            if (c.mask == MASK_TREE) c.window_left = c.window_right = INT64_MAX, c.alibi = c.positions;
            c.k = test::some_format(random, code), c.v = test::some_format(random, code);
            if (round < 3) c.q_dtype = BF16, c.bf16_probabilities = true;
            check_case(random, c, {{2 + random.below(7), 8 + random.below(200)}, {8, 130}, {1, 64}, {3, 67}});
        }
}

// Logits that spread from less than one to tens, over several tiles of keys: sums are never rescaled, or with many tiles,
// for some rows of a block and not for others.
static void spread_logits(Random &random) {
    const float scales[] = {0.02f, 0.5f, 2.0f, 6.0f};
    for (int round = 0; round < 16; round++) {
        Case c = some_case(random);
        c.dim_qk = 40, c.scale = scales[round % 4], c.softcap = 0, c.split_queries = 0;
        c.window_left = INT64_MAX;
        if (round < 8) c.q_dtype = BF16, c.bf16_probabilities = true, c.k = c.v = test::some_format(random, KV_BF16);
        check_case(random, c, {{30, 300}, {9, 130}});
    }
}

// Heads as long as refusals.py lets them be: tiles, rows and states have to lie in a thread's own memory.
static void longest_heads(Random &random) {
    for (int round = 0; round < 4; round++) {
        Case c = some_case(random);
        c.dim_qk = c.dim_vo = 1024, c.kv_heads = 1, c.q_heads = 20, c.scale = 1.0f / 32;
        c.window_left = INT64_MAX;
        c.split_queries = round % 2 ? most_split(c) : 0;
        if (c.mask == MASK_TREE) c.mask = MASK_FULL, c.positions = false;
        check_case(random, c, {{most_split(c), 9}, {1, 17}, {5, 6}});
    }
}

int main() {
    test::use_this_level();
    Random random;
    decode(random);
    lowest_digits(random);
    verify(random);
    longest_heads(random);
    spread_logits(random);
    for (int i = 0; i < 150; i++) {
        const Case c = some_case(random);
        std::vector<Sequence> sequences;
        for (int64_t s = 1 + random.below(4); s > 0; s--) sequences.push_back(some_sequence(random, c));
        check_case(random, c, sequences);
    }
    return test::failures();
}
