// A part of one query's keys, chunk by chunk: scores, knobs, the online softmax's step, values.
#include "attention_decode.h"

#include <algorithm>

namespace opsocket {
namespace OPSOCKET_LEVEL {

namespace {

// Logits of a chunk, and copies of values' tiles where bytes of tokens that the query does not see are in the way.
struct Scratch {
    alignas(64) float s[DECODE_ROWS * DECODE_TOKENS];
    DecodeWeights weights;
    unsigned char *tiles;  // [DECODE_TILES][bytes of codes]
};

struct Chunk {
    int64_t token;    // of the first key
    int first, last;  // keys of the chunk that the query sees
    int tiles;
    bool whole() const { return first == 0 && last == tiles * TILE; }
};

// The tile without the tokens outside [first, last) of it: stale bytes may be NaN.
void copy_tokens(const KVTiles &v, const unsigned char *tile, int first, int last, unsigned char *copy) {
    int n = kv_per_dword(v.code);
    int64_t width = v_width(v.dim);
    for (int i = 0; i < v_rows(v.code); i++) {
        uint32_t mask = 0;
        for (int j = 0; j < n; j++)
            if (i * n + j >= first && i * n + j < last)
                mask |= uint32_t((uint64_t(1) << kv_bits(v.code)) - 1) << kv_shift(v.code, j);
        const unsigned char *from = tile + i * width * 4;
        unsigned char *to = copy + i * width * 4;
        for (int64_t d = 0; d < width; d += W) {
            U x = load_as<U>(from + d * 4) & mask;
            __builtin_memcpy(to + d * 4, &x, sizeof x);
        }
    }
}

#if OPSOCKET_AVX512_BF16
void to_bf16(const float *p, int tiles, unsigned char *packed) {
    for (int t = 0; t < tiles; t++)
        _mm256_store_si256(
            (__m256i *)(packed + t * TILE * 2), (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(p + t * TILE))
        );
}
#endif

// A step of the online softmax: logits to weights of values (scaled), and what older output is multiplied by.
// Returns how the products with values are to be formed.
int32_t soften(const Attention &c, const Chunk &chunk, int rows, const unsigned char *const *tiles, DecodeState &state,
               Scratch &x) {
    const KVTiles &v = c.cache.v;
    DecodeWeights &w = x.weights;
    int n = chunk.tiles * TILE;
    int32_t dot = decode_dot(v.code, c.bf16_probabilities != 0);
    F base[DECODE_ROWS];
    for (int r = 0; r < rows; r++) {
        const float *s = x.s + r * DECODE_TOKENS;
        F most = load(s);
        for (int i = W; i < n; i += W) most = max(load(s + i), most);
        float old = state.largest[r], top = std::max(old, largest(most));
        state.largest[r] = top;
        base[r] = set(top == -INFINITY ? 0.0f : top);
        w.carry[r] = old == top ? 1.0f : exp(set(old - top))[0];
    }
    for (int r = 0; r < rows; r++) {
        const float *s = x.s + r * DECODE_TOKENS;
        float *p = w.p + r * DECODE_TOKENS;
        F sums = set(0.0f);
        for (int t = 0; t < chunk.tiles; t++) {
            const float *scales = reinterpret_cast<const float *>(tiles[t] + v_code_bytes(v.code, v.dim));
            for (int i = t * TILE; i < (t + 1) * TILE; i += W) {
                F weight = exp(load(s + i) - base[r]);
                sums += weight;
                if (v.granularity == SCALE_TOKEN_HEAD) weight *= load(scales + i - t * TILE);
                store(p + i, weight);
            }
        }
        state.sum[r] = state.sum[r] * w.carry[r] + sum(sums);
        if (!chunk.whole()) {
            std::fill(p, p + chunk.first, 0.0f);
            std::fill(p + chunk.last, p + n, 0.0f);
        }
    }
#if OPSOCKET_AVX512_BF16
    if (dot == DOT_BF16)
        for (int r = 0; r < rows; r++) to_bf16(w.p + r * DECODE_TOKENS, chunk.tiles, w.packed + r * DECODE_TOKENS * 2);
#endif
#if OPSOCKET_AVX512
    if (dot == DOT_F32 && decode_pairs(v.code) == 4)
        for (int i = 0; i < rows * DECODE_TOKENS; i += W)
            store(w.p + i, (F)_mm512_permute_ps((__m512)load(w.p + i), 0xd8));
#endif
    return dot;
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

// The static scales of values, after their sums.
void scale_values(const KVTiles &v, int64_t head, int64_t rows, float *acc) {
    if (v.granularity == SCALE_NONE || v.granularity == SCALE_TOKEN_HEAD) return;
    bool channels = v.granularity == SCALE_CHANNEL;
    const float *scale = v.scale + (channels ? head * v.dim : v.granularity == SCALE_HEAD ? head : 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < v.dim; d++) acc[r * v_width(v.dim) + d] *= scale[channels ? d : 0];
}

int64_t scratch_bytes(const KVTiles &v) {
    return (int64_t(sizeof(Scratch)) + 63) / 64 * 64 + DECODE_TILES * v_code_bytes(v.code, v.dim);
}

// How the rows of a KV head are cut: blocks of DECODE_ROWS, the last perhaps of fewer.
struct Blocks {
    int64_t group, of_head, all;
    explicit Blocks(const Attention &c)
        : group(c.q_heads / c.kv_heads), of_head((group + DECODE_ROWS - 1) / DECODE_ROWS), all(of_head * c.kv_heads) {}
    int64_t first_row(int64_t block) const { return block / of_head * group + block % of_head * DECODE_ROWS; }
    int rows(int64_t block) const {
        return int(std::min<int64_t>(DECODE_ROWS, group - block % of_head * DECODE_ROWS));
    }
};

// Adds keys [first, last) to the states of all blocks of rows.
void add_keys(const Part &part, const Blocks &blocks, int64_t first, int64_t last, const DecodeQuery *queries,
              DecodeState *states, Scratch &x) {
    const Attention &c = part.command;
    const KVTilesPair &kv = c.cache;
    DecodeWeights &w = x.weights;
    w.width = v_width(kv.v.dim);
    const int64_t vectors = k_vectors(kv.k.code, kv.k.dim);
    const int64_t k_scales_at = k_code_bytes(kv.k.code, kv.k.dim), v_bytes = v_code_bytes(kv.v.code, kv.v.dim);
    const int64_t k_head = kv.tiles * kv.k.tile_bytes, v_head = kv.tiles * kv.v.tile_bytes;
    const bool knobs = c.softcap != 0 || c.slopes;

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
        Chunk chunk;
        chunk.token = token;
        chunk.tiles = tiles_from(token);
        chunk.first = int(std::max<int64_t>(first - token, 0));
        chunk.last = int(std::min<int64_t>(last - token, DECODE_TOKENS));
        next = here;
        if (token + DECODE_TOKENS < last) pages(token + DECODE_TOKENS, tiles_from(token + DECODE_TOKENS), next);
        for (int64_t head = 0; head < kv.heads; head++) {
            const unsigned char *k[DECODE_TILES], *v[DECODE_TILES], *k_ahead[DECODE_TILES], *v_ahead[DECODE_TILES];
            for (int t = 0; t < chunk.tiles; t++) {
                k[t] = here.k[t] + head * k_head;
                v[t] = here.v[t] + head * v_head;
                k_ahead[t] = head + 1 < kv.heads ? k[t] + k_head : next.k[t];
                v_ahead[t] = head + 1 < kv.heads ? v[t] + v_head : next.v[t];
            }
            for (int64_t b = 0; b < blocks.of_head; b++) {
                const DecodeQuery &query = queries[head * blocks.of_head + b];
                DecodeState &state = states[head * blocks.of_head + b];
                DecodeScores scores = decode_scores(kv.k.code, query.dot, query.rows);
                for (int t = 0; t < chunk.tiles; t++) {
                    float *s = x.s + t * TILE;
                    scores(query, k[t], b ? k[t] : k_ahead[t], vectors, s);
                    if (kv.k.granularity == SCALE_TOKEN_HEAD) {
                        const float *scales = reinterpret_cast<const float *>(k[t] + k_scales_at);
                        for (int i = 0; i < TILE; i += W) {
                            F scale = load(scales + i);
                            for (int r = 0; r < query.rows; r++)
                                store(s + r * DECODE_TOKENS + i, load(s + r * DECODE_TOKENS + i) * scale);
                        }
                    }
                }
                if (knobs) apply_knobs(part, blocks.first_row(head * blocks.of_head + b), query.rows, token, x.s);
                if (!chunk.whole())
                    for (int r = 0; r < query.rows; r++) {
                        float *s = x.s + r * DECODE_TOKENS;
                        std::fill(s, s + chunk.first, -INFINITY);
                        std::fill(s + chunk.last, s + chunk.tiles * TILE, -INFINITY);
                    }
                int32_t dot = soften(c, chunk, query.rows, v, state, x);
                w.count = chunk.tiles;
                for (int t = 0; t < chunk.tiles; t++) {
                    int from = std::clamp(chunk.first - t * TILE, 0, TILE);
                    int to = std::clamp(chunk.last - t * TILE, 0, TILE);
                    w.tiles[t] = v[t];
                    w.ahead[t] = b ? v[t] : v_ahead[t];
                    if ((from > 0 || to < TILE) && !kv_is_integer(kv.v.code)) {
                        unsigned char *copy = x.tiles + t * v_bytes;
                        copy_tokens(kv.v, v[t], from, to, copy);
                        w.tiles[t] = copy;
                    }
                }
                decode_values(kv.v.code, dot, query.rows)(w, state.out);
            }
        }
        here = next;
    }
}

}  // namespace

bool decodes_part(const Part &part) {
    const Attention &c = part.command;
    if (!part.blocks || part.queries != 1 || part.row->tree) return false;
    int64_t of_block = sizeof(DecodeQuery) + sizeof(DecodeState) + decode_query_floats(c.dim_qk, DECODE_ROWS) * 4;
    return Blocks(c).all * of_block + scratch_bytes(c.cache.v) + 256 <= PART_SCRATCH;
}

void decode_part(const Part &part) {
    const Attention &c = part.command;
    int64_t first = std::max(part.first, part.row->low), last = std::min(part.last, part.row->high);
    if (first >= last) return;
    const Blocks blocks(c);
    unsigned char *at = part.scratch;
    auto take = [&](int64_t bytes) {
        unsigned char *piece = at;
        at += (bytes + 63) / 64 * 64;
        return piece;
    };
    DecodeQuery *queries = reinterpret_cast<DecodeQuery *>(take(blocks.all * int64_t(sizeof(DecodeQuery))));
    DecodeState *states = reinterpret_cast<DecodeState *>(take(blocks.all * int64_t(sizeof(DecodeState))));
    Scratch &scratch = *reinterpret_cast<Scratch *>(take(sizeof(Scratch)));
    scratch.tiles = take(DECODE_TILES * v_code_bytes(c.cache.v.code, c.cache.v.dim));
    for (int64_t i = 0; i < blocks.all; i++) {
        int64_t row = blocks.first_row(i);
        int rows = blocks.rows(i);
        float *memory = reinterpret_cast<float *>(take(decode_query_floats(c.dim_qk, rows) * 4));
        decode_prepare(queries[i], memory, c.cache.k, i / blocks.of_head, rows, part.q + row * c.dim_qk,
                       c.q_dtype == BF16, c.scale);
        std::fill_n(states[i].largest, rows, -INFINITY);
        std::fill_n(states[i].sum, rows, 0.0f);
        states[i].out = part.acc + row * out_width(c);
    }
    add_keys(part, blocks, first, last, queries, states, scratch);
    for (int64_t i = 0; i < blocks.all; i++) {
        int rows = blocks.rows(i);
        std::copy_n(states[i].largest, rows, part.top + blocks.first_row(i));
        std::copy_n(states[i].sum, rows, part.total + blocks.first_row(i));
        scale_values(c.cache.v, i / blocks.of_head, rows, states[i].out);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
