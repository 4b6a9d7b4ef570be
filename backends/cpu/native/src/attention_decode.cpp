// A part of a few queries' keys, chunk by chunk: scores, knobs, masks, the online softmax's step, values.
#include "attention_decode.h"

#include <algorithm>

namespace opsocket {
namespace OPSOCKET_LEVEL {

namespace {

// Logits of a chunk, and copies of values' tiles where bytes of tokens that nobody sees are in the way.
struct Scratch {
    alignas(64) float s[DECODE_ROWS * DECODE_TOKENS];
    DecodeWeights weights, single;  // of a block of rows; of one of them
    unsigned char *tiles, *single_tiles;  // [DECODE_TILES][bytes of codes]
};

// Keys of a chunk that someone sees, one bit each.
using Seen = uint64_t;
static_assert(DECODE_TOKENS == 64);

constexpr Seen tokens_below(int64_t n) { return n >= 64 ? ~Seen(0) : (Seen(1) << n) - 1; }
constexpr uint32_t seen_of_tile(Seen seen, int tile) { return uint32_t(seen >> (tile * TILE)) & 0xffff; }

struct Chunk {
    int64_t token;  // of the first key
    int tiles;
    Seen seen[DECODE_QUERIES], by_some;
    bool by_all;  // whether every query sees all of DECODE_TOKENS keys
};
constexpr Seen EVERY = ~Seen(0);

// The chunk from `token` on, of the keys [first, last) of the part.
Chunk make_chunk(const Part &part, int64_t token, int64_t first, int64_t last) {
    Chunk chunk{};
    chunk.token = token;
    chunk.tiles = int(std::min<int64_t>(DECODE_TILES, (last - token + TILE - 1) / TILE));
    chunk.by_all = true;
    for (int64_t i = 0; i < part.queries; i++) {
        const Row &row = part.row[i];
        int64_t low = std::max<int64_t>(first, row.low), high = std::min<int64_t>(last, row.high);
        Seen seen = tokens_below(std::max<int64_t>(high - token, 0)) & ~tokens_below(std::max<int64_t>(low - token, 0));
        if (row.tree)
            for (int64_t key = std::max<int64_t>(token, row.history); key < std::min(token + DECODE_TOKENS, high); key++)
                if (!sees(row, key)) seen &= ~(Seen(1) << (key - token));
        chunk.seen[i] = seen;
        chunk.by_some |= seen;
        chunk.by_all = chunk.by_all && seen == EVERY;
    }
    return chunk;
}

// x where a bit of `seen` is set, from its lowest on, else `hidden`.
F where_seen(Seen seen, F x, float hidden) {
    U bits = (U{} + uint32_t(seen)) >> (U)lanes();
    return (I)((bits & 1) != 0) ? x : set(hidden);
}

// The tile without the tokens that `seen` lacks: stale bytes may be NaN.
void copy_tokens(const KVTiles &v, const unsigned char *tile, uint32_t seen, unsigned char *copy) {
    int n = kv_per_dword(v.code);
    int64_t width = v_width(v.dim);
    for (int i = 0; i < v_rows(v.code); i++) {
        uint32_t mask = 0;
        for (int j = 0; j < n; j++)
            if (seen >> (i * n + j) & 1) mask |= uint32_t((uint64_t(1) << kv_bits(v.code)) - 1) << kv_shift(v.code, j);
        const unsigned char *from = tile + i * width * 4;
        unsigned char *to = copy + i * width * 4;
        for (int64_t d = 0; d < width; d += W) {
            U x = load_as<U>(from + d * 4) & mask;
            __builtin_memcpy(to + d * 4, &x, sizeof x);
        }
    }
}

// Whether a tile of values has an infinite one or NaN.
bool has_broken_value(const KVTiles &v, const unsigned char *tile) {
    I broken = set(int32_t(0));
    with_code(v.code, [&](auto code) {
        constexpr int32_t C = decltype(code)::value;
        if constexpr (!kv_is_integer(C))
            for (int64_t i = 0; i < v_code_bytes(C, v.dim); i += W * 4)
                for (int j = 0; j < kv_per_dword(C); j++) {
                    F x = kv_decode<C>(kv_field<C>(load_as<U>(tile + i), j));
                    broken |= (I)(((U)x & 0x7f800000u) == 0x7f800000u);
                }
    });
    return sum(broken) != 0;
}

// A step of the online softmax: logits to weights of values (scaled, `dot` says of what kind), and what older output is
// multiplied by. seen: of each row; null: they see all. tiles: of values, all DECODE_TILES.
//
// No byte of the cache is read meanwhile, and what has not been asked for before the memory has nothing to do: so some
// of the next values are asked for here, at `ahead`.
template <int R>
void soften(const KVTiles &v, int32_t dot, const Seen *seen, const unsigned char *const *tiles,
            const unsigned char *const *ahead, DecodeState &state, Scratch &x) {
    DecodeWeights &w = x.weights;
    const bool shuffled = decode_order(v.code, dot) == ORDER_SHUFFLED, scaled = v.granularity == SCALE_TOKEN_HEAD;
    const int64_t bytes = v_code_bytes(v.code, v.dim);
    F most[R], sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        most[r] = load(x.s + r * DECODE_TOKENS);
        for (int i = W; i < DECODE_TOKENS; i += W) most[r] = max(load(x.s + r * DECODE_TOKENS + i), most[r]);
    }
    const F old = load(state.largest), top = max(across<R>(most, [](F a, F b) { return max(a, b); }), old);
    const F carry = exp(old == top ? set(0.0f) : old - top);
    alignas(64) float base[W];
    store(base, top == -INFINITY ? set(0.0f) : top * LOG2_E);
    store(state.largest, top);
    store(w.carry, carry);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        sums[r] = set(0.0f);
        const F from = set(base[r]);
        const float *logits = x.s + r * DECODE_TOKENS;
        F weight[DECODE_TOKENS / W];
#pragma GCC unroll 4
        for (int i = 0; i < DECODE_TOKENS / W; i++) {
            weight[i] = exp2(load(logits + i * W) * LOG2_E - from);
            sums[r] += weight[i];
        }
        if (scaled)
#pragma GCC unroll 4
            for (int i = 0; i < DECODE_TOKENS / W; i++)
                weight[i] *= load(reinterpret_cast<const float *>(tiles[i * W / TILE] + bytes) + i * W % TILE);
        if (seen)  // a stale scale may be NaN
#pragma GCC unroll 4
            for (int i = 0; i < DECODE_TOKENS / W; i++) weight[i] = where_seen(seen[r] >> (i * W), weight[i], 0);
        if (ahead && r * 128 < bytes)
            for (int tile = 0; tile < DECODE_TILES; tile++) {
                prefetch(ahead[tile] + r * 128);
                prefetch(ahead[tile] + r * 128 + 64);
            }
#pragma GCC unroll 4
        for (int i = 0; i < DECODE_TOKENS / W; i++) {
            const int at = r * DECODE_TOKENS + i * W;
            if (shuffled) weight[i] = shuffle_fours(weight[i]);
#if OPSOCKET_AVX512_BF16
            if (dot == DOT_BF16) {
                store_probabilities(w.packed + at * 2, weight[i]);
                continue;
            }
#endif
            store(w.p + at, weight[i]);
        }
    }
    store(state.sum, load(state.sum) * carry + across<R>(sums, [](F a, F b) { return a + b; }));
}

#if OPSOCKET_DIGITS
// Makes digits of weights. Of what kind their products are to be, so that bf16's 8 bits of each are left beside the row's
// largest in this chunk.
template <int R> int32_t weights_to_digits(int32_t code, DecodeWeights &w) {
    // By their bits, of which NaN has the most. Zeros, which any number of digits holds, become more than that.
    auto larger = [](F a, F b) { return as_float(max(as_int(a), as_int(b))); };
    auto smaller = [](F a, F b) { return (F)min((U)a, (U)b); };
    F size[R], rest[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        for (int i = 0; i < DECODE_TOKENS; i += W) {
            const F bits = abs(load(w.p + r * DECODE_TOKENS + i)), before = as_float(as_int(bits) - 1);
            size[r] = i ? larger(bits, size[r]) : bits;
            rest[r] = i ? smaller(before, rest[r]) : before;
        }
    const F top = across<R>(size, larger), least = as_float(as_int(across<R>(rest, smaller)) + 1);
    auto is_less = [&](float share) { return (true_lanes((I)(least < top * share)) & ((1 << R) - 1)) != 0; };
    if (is_less(0x1p-24f)) return DOT_F32;
    constexpr float most = most_in_digits(V_DIGITS);
    alignas(64) float units[W];
    store(w.unit, top * (decoded_unit(code) / most));
    store(units, (F)((I)(top > 0) & (I)(most / top)));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        DigitSums sums;
        for (int i = 0; i < DECODE_TOKENS; i += W) {
            const I digits = digits_of(load(w.p + r * DECODE_TOKENS + i) * units[r]);
            sums.add(digits);
            __builtin_memcpy(w.packed + (r * DECODE_TOKENS + i) * 4, &digits, sizeof digits);
        }
        sums.store(code, w.first[r]);
    }
    return is_less(0x1p-16f) ? DOT_DIGITS : DOT_FEW_DIGITS;
}
#endif

// Whether the coarser products of the query do with these keys.
bool coarse_do(const DecodeQuery &query, const DecodeKeys &keys) {
    if (query.coarse_until < 0 || !keys.scales_at) return query.coarse_until >= 1;
    I most{};  // by their bits
    for (const unsigned char *tile : keys.tiles)
        for (int i = 0; i < TILE; i += W)
            most = max(as_int(abs(load(reinterpret_cast<const float *>(tile + keys.scales_at) + i))), most);
    return !true_lanes(~(I)(as_float(most) <= query.coarse_until));
}

// Softcap and ALiBi of the logits of some rows, from row `first`.
void apply_knobs(const Part &part, int64_t first, int rows, int64_t token, float *logits) {
    const Attention &c = part.command;
    for (int r = 0; r < rows; r++) {
        const Row &row = part.row[first + r];
        for (int j = 0; j < DECODE_TOKENS; j += W) {
            F x = load(logits + r * DECODE_TOKENS + j);
            if (c.softcap != 0) x = tanh(x / c.softcap) * c.softcap;
            if (c.slopes) x = x - abs(convert(lanes() + int32_t(token + j - row.position))) * row.slope;
            store(logits + r * DECODE_TOKENS + j, x);
        }
    }
}

// What sums of values are short of: their static scales, over what they were decoded to be multiples of.
void scale_values(const KVTiles &v, int64_t head, int64_t rows, float *acc) {
    const float unit = decoded_unit(v.code);
    const bool fixed = v.granularity != SCALE_NONE && v.granularity != SCALE_TOKEN_HEAD;
    if (!fixed && unit == 1) return;
    const bool channels = v.granularity == SCALE_CHANNEL;
    const float *scale = v.scale + (channels ? head * v.dim : v.granularity == SCALE_HEAD ? head : 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < v.dim; d++) acc[r * v_width(v.dim) + d] *= (fixed ? scale[channels ? d : 0] : 1) / unit;
}

int64_t scratch_bytes(const KVTiles &v) {
    return (int64_t(sizeof(Scratch)) + 63) / 64 * 64 + 2 * DECODE_TILES * v_code_bytes(v.code, v.dim);
}

// How the rows of a KV head are cut: blocks that there are kernels for.
struct Blocks {
    int64_t rows_of_head, of_head = 0, all;
    explicit Blocks(const Part &part)
        : rows_of_head(part.command.q_heads / part.command.kv_heads * part.queries) {
        for (int64_t row = 0; row < rows_of_head; row += block_rows(rows_of_head - row)) of_head++;
        all = of_head * part.command.kv_heads;
    }
};

struct Block {
    int64_t row;  // of the part: the first
    DecodeQuery query;
    DecodeState state;
    DecodeScores scores, coarse_scores;
    DecodeValues values, few_values;
};

// out = out * carry + weights * values for a block of rows of which some don't see what others see, where values are
// infinite or NaN: row by row, without the tokens that it does not see.
void add_values_of_each(const Attention &c, const Chunk &chunk, const Seen *seen, int rows, int32_t dot,
                        DecodeState &state, Scratch &x) {
    const KVTiles &v = c.cache.v;
    const DecodeWeights &w = x.weights;
    const int64_t bytes = v_code_bytes(v.code, v.dim);
    DecodeWeights &one = x.single;
    one.count = w.count, one.width = w.width;
    for (int r = 0; r < rows; r++) {
        one.carry[0] = w.carry[r];
        std::copy_n(w.p + r * DECODE_TOKENS, DECODE_TOKENS, one.p);
        std::copy_n(w.packed + r * DECODE_TOKENS * 2, DECODE_TOKENS * 2, one.packed);
        for (int t = 0; t < chunk.tiles; t++) {
            unsigned char *copy = x.single_tiles + t * bytes;
            copy_tokens(v, w.tiles[t], seen_of_tile(seen[r], t), copy);
            one.tiles[t] = one.ahead[t] = copy;
        }
        decode_values(v.code, dot, 1)(one, state.out + r * w.width);
    }
}

// Adds keys [first, last) to the states of all blocks of rows.
void add_keys(const Part &part, const Blocks &blocks, int64_t first, int64_t last, Block *block, Scratch &x) {
    const Attention &c = part.command;
    const KVTilesPair &kv = c.cache;
    DecodeWeights &w = x.weights;
    w.width = v_width(kv.v.dim);
    DecodeKeys keys;
    keys.vectors = k_vectors(kv.k.code, kv.k.dim);
    keys.scales_at = kv.k.granularity == SCALE_TOKEN_HEAD ? k_code_bytes(kv.k.code, kv.k.dim) : 0;
    const int64_t v_bytes = v_code_bytes(kv.v.code, kv.v.dim);
    const int64_t k_head = kv.tiles * kv.k.tile_bytes, v_head = kv.tiles * kv.v.tile_bytes;
    const bool knobs = c.softcap != 0 || c.slopes;
    const int32_t dot = decode_dot(kv.v.code, c.bf16_probabilities != 0);

    struct Pages {
        const unsigned char *k[DECODE_TILES], *v[DECODE_TILES];
    };
    auto pages = [&](int64_t token, int tiles, Pages &p) {
        for (int t = 0; t < tiles; t++) {
            int64_t tile = token / TILE + t, block = part.blocks[tile / kv.tiles], j = tile % kv.tiles;
            p.k[t] = kv.k.data + (block * kv.heads * kv.tiles + j) * kv.k.tile_bytes;
            p.v[t] = kv.v.data + (block * kv.heads * kv.tiles + j) * kv.v.tile_bytes;
        }
    };
    auto tiles_from = [&](int64_t token) {
        return int(std::min<int64_t>(DECODE_TILES, (last - token + TILE - 1) / TILE));
    };

    const int64_t start = first / TILE * TILE;
    Pages here, next;
    pages(start, tiles_from(start), here);
    for (int64_t token = start; token < last; token += DECODE_TOKENS) {
        const Chunk chunk = make_chunk(part, token, first, last);
        next = here;
        if (token + DECODE_TOKENS < last) pages(token + DECODE_TOKENS, tiles_from(token + DECODE_TOKENS), next);
        for (int64_t head = 0; head < kv.heads; head++) {
            const unsigned char *k[DECODE_TILES], *v[DECODE_TILES], *k_ahead[DECODE_TILES], *v_ahead[DECODE_TILES];
            for (int t = 0; t < DECODE_TILES; t++) {
                const int of = t < chunk.tiles ? t : 0;
                k[t] = here.k[of] + head * k_head;
                v[t] = here.v[of] + head * v_head;
                k_ahead[t] = head + 1 < kv.heads ? k[t] + k_head : next.k[of];
                v_ahead[t] = head + 1 < kv.heads ? v[t] + v_head : next.v[of];
                if (keys.scales_at) prefetch(k_ahead[t] + keys.scales_at);
                if (kv.v.granularity == SCALE_TOKEN_HEAD) prefetch(v_ahead[t] + v_bytes);
            }
            bool broken = false;  // whether what some row does not see would reach it, as 0 * NaN
            w.count = chunk.tiles;
            for (int t = 0; t < chunk.tiles; t++) {
                w.tiles[t] = v[t];
                const uint32_t seen = seen_of_tile(chunk.by_some, t);
                if (chunk.by_all || kv_is_integer(kv.v.code)) continue;
                if (seen != 0xffff) {
                    unsigned char *copy = x.tiles + t * v_bytes;
                    copy_tokens(kv.v, v[t], seen, copy);
                    w.tiles[t] = copy;
                }
                broken = broken || (part.queries > 1 && has_broken_value(kv.v, w.tiles[t]));
            }
            for (int64_t b = 0; b < blocks.of_head; b++) {
                Block &of = block[head * blocks.of_head + b];
                const int64_t row = of.row;
                const DecodeQuery &query = of.query;
                DecodeState &state = of.state;
                Seen of_row[DECODE_ROWS], together = EVERY, by_some = EVERY;
                if (!chunk.by_all) {
                    by_some = 0;
                    for (int r = 0; r < query.rows; r++) {
                        of_row[r] = chunk.seen[(row + r) % part.queries];
                        together &= of_row[r], by_some |= of_row[r];
                    }
                    if (!by_some) continue;
                }
                const Seen *seen = together == EVERY ? nullptr : of_row;
                for (int t = 0; t < DECODE_TILES; t++) keys.tiles[t] = k[t], keys.ahead[t] = b ? k[t] : k_ahead[t];
                (coarse_do(query, keys) ? of.coarse_scores : of.scores)(query, keys, x.s);
                if (knobs) apply_knobs(part, row, query.rows, token, x.s);
                for (int r = 0; seen && r < query.rows; r++)
                    for (int i = 0; i < DECODE_TOKENS; i += W) {
                        float *s = x.s + r * DECODE_TOKENS + i;
                        store(s, where_seen(seen[r] >> i, load(s), -INFINITY));
                    }
                DecodeValues add = of.values;
                with_rows(query.rows, [&](auto rows) {
                    constexpr int R = decltype(rows)::value;
                    soften<R>(kv.v, dot, seen, v, b ? nullptr : v_ahead, state, x);
#if OPSOCKET_DIGITS
                    if (dot != DOT_DIGITS) return;
                    const int32_t kind = weights_to_digits<R>(kv.v.code, w);
                    if (kind == DOT_FEW_DIGITS) add = of.few_values;
                    if (kind == DOT_F32) add = decode_values(kv.v.code, DOT_F32, R);
#endif
                });
                for (int t = 0; t < chunk.tiles; t++) w.ahead[t] = b ? w.tiles[t] : v_ahead[t];
                if (broken && together != by_some) add_values_of_each(c, chunk, of_row, query.rows, dot, state, x);
                else add(w, state.out);
            }
        }
        here = next;
    }
}

}  // namespace

bool decodes_part(const Part &part) {
    const Attention &c = part.command;
    if (!part.blocks || part.queries > DECODE_QUERIES) return false;
    const Blocks blocks(part);
    if (part.queries > 1 && blocks.rows_of_head > MOST_HEAD_ROWS) return false;
    const int64_t of_rows = c.kv_heads * blocks.rows_of_head * decode_query_floats(c.dim_qk, 1) * 4;
    return blocks.all * int64_t(sizeof(Block)) + of_rows + scratch_bytes(c.cache.v) + 256 <= PART_SCRATCH;
}

void decode_part(const Part &part) {
    const Attention &c = part.command;
    int64_t first = part.last, last = part.first;  // that some query sees
    for (int64_t i = 0; i < part.queries; i++) {
        const Row &row = part.row[i];
        if (row.low >= row.high) continue;
        first = std::min(first, std::max<int64_t>(part.first, row.low));
        last = std::max(last, std::min<int64_t>(part.last, row.high));
    }
    if (first >= last) return;
    const Blocks blocks(part);
    unsigned char *at = part.scratch;
    auto take = [&](int64_t bytes) {
        unsigned char *piece = at;
        at += (bytes + 63) / 64 * 64;
        return piece;
    };
    Block *block = reinterpret_cast<Block *>(take(blocks.all * int64_t(sizeof(Block))));
    Scratch &scratch = *reinterpret_cast<Scratch *>(take(sizeof(Scratch)));
    scratch.tiles = take(DECODE_TILES * v_code_bytes(c.cache.v.code, c.cache.v.dim));
    scratch.single_tiles = take(DECODE_TILES * v_code_bytes(c.cache.v.code, c.cache.v.dim));
    Block *next = block;
    for (int64_t head = 0; head < c.kv_heads; head++)
        for (int64_t row = 0; row < blocks.rows_of_head; row += next++->query.rows) {
            const int rows = block_rows(blocks.rows_of_head - row);
            next->row = head * blocks.rows_of_head + row;
            auto few = [](int32_t dot) { return dot == DOT_DIGITS ? int32_t(DOT_FEW_DIGITS) : dot; };
            float *memory = reinterpret_cast<float *>(take(decode_query_floats(c.dim_qk, rows) * 4));
            decode_prepare(next->query, memory, c.cache.k, head, rows, part.q + next->row * c.dim_qk, c.q_dtype == BF16,
                           c.scale, c.bf16_probabilities != 0 && !c.lse);
            const int32_t dot = decode_dot(c.cache.v.code, c.bf16_probabilities != 0);
            next->scores = decode_scores(c.cache.k.code, next->query.dot, rows);
            next->coarse_scores = decode_scores(c.cache.k.code, next->query.coarse_dot, rows);
            next->values = decode_values(c.cache.v.code, dot, rows);
            next->few_values = decode_values(c.cache.v.code, few(dot), rows);
            std::fill_n(next->state.largest, W, -INFINITY);
            std::fill_n(next->state.sum, W, 0.0f);
            next->state.out = part.acc + next->row * out_width(c);
        }
    add_keys(part, blocks, first, last, block, scratch);
    for (int64_t i = 0; i < blocks.all; i++) {
        const int rows = block[i].query.rows;
        std::copy_n(block[i].state.largest, rows, part.top + block[i].row);
        std::copy_n(block[i].state.sum, rows, part.total + block[i].row);
        scale_values(c.cache.v, i / blocks.of_head, rows, block[i].state.out);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
