// One span of keys, chunk by chunk: scores, knobs, the online softmax's step, values.
#include "attention_part.h"

#include "attention_decode.h"

#include <algorithm>

namespace opsocket {
namespace OPSOCKET_LEVEL {

namespace {

// Logits of a chunk, and copies of values' tiles where bytes of tokens outside of the span are in the way.
struct Scratch {
    alignas(64) float s[DECODE_ROWS * DECODE_TOKENS];
    DecodeWeights weights;
    alignas(64) unsigned char tiles[1];
};

struct Chunk {
    int64_t token;    // of the first key
    int first, last;  // keys of the chunk that are in the span
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
int32_t soften(const DecodeSpan &span, const Chunk &chunk, int rows, const unsigned char *const *tiles,
               DecodeState &state, Scratch &x) {
    const KVTiles &v = span.kv->v;
    DecodeWeights &w = x.weights;
    int n = chunk.tiles * TILE;
    int32_t dot = decode_dot(v.code, span.bf16_probabilities);
    int pairs = decode_pairs(v.code);
    F base[DECODE_ROWS];
    for (int r = 0; r < rows; r++) {
        const float *s = x.s + r * DECODE_TOKENS;
        F most = load(s);
        for (int i = W; i < n; i += W) most = max(load(s + i), most);
        float old = state.largest[r], top = std::max(old, largest(most));
        state.largest[r] = top;
        base[r] = set(top == -INFINITY ? 0.0f : top);
        w.carry[r] = old == top ? 1.0f : old - top;
    }
    for (int r = 0; r < rows; r++)
        if (w.carry[r] != 1.0f) w.carry[r] = exp(set(w.carry[r]))[0];
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
    if (dot == DOT_F32 && pairs == 4)
        for (int i = 0; i < rows * DECODE_TOKENS; i += W) store(w.p + i, (F)_mm512_permute_ps((__m512)load(w.p + i), 0xd8));
#endif
    (void)pairs;
    return dot;
}

}  // namespace

int64_t decode_scratch_bytes(const KVTilesPair &kv) {
    return int64_t(sizeof(Scratch)) + 64 + DECODE_TILES * v_code_bytes(kv.v.code, kv.v.dim);
}

void decode_span(
    const DecodeSpan &span, int64_t begin, int64_t end, int64_t row_blocks, const DecodeQuery *queries,
    DecodeState *states, unsigned char *scratch
) {
    const KVTilesPair &kv = *span.kv;
    Scratch &x = *reinterpret_cast<Scratch *>(scratch);
    DecodeWeights &w = x.weights;
    w.width = v_width(kv.v.dim);
    const int64_t vectors = k_vectors(kv.k.code, kv.k.dim);
    const int64_t k_scales_at = k_code_bytes(kv.k.code, kv.k.dim), v_bytes = v_code_bytes(kv.v.code, kv.v.dim);
    const int64_t k_head = kv.tiles * kv.k.tile_bytes, v_head = kv.tiles * kv.v.tile_bytes;
    const int rows = queries->rows;  // of the first block: what the last has may be fewer

    struct Pages {
        const unsigned char *k[DECODE_TILES], *v[DECODE_TILES];
    };
    auto pages = [&](int64_t token, int tiles, Pages &p) {
        for (int t = 0; t < tiles; t++) {
            int64_t tile = token / TILE + t, block = span.blocks[tile / kv.tiles], j = tile % kv.tiles;
            p.k[t] = kv.k.data + (block * kv.heads * kv.tiles + j) * kv.k.tile_bytes;
            p.v[t] = kv.v.data + (block * kv.heads * kv.tiles + j) * kv.v.tile_bytes;
        }
    };
    auto tiles_from = [&](int64_t token) {
        return int(std::min<int64_t>(DECODE_TILES, (span.last - token + TILE - 1) / TILE));
    };

    const int64_t start = span.first / TILE * TILE;
    if (start >= span.last) return;
    Pages here, next;
    pages(start, tiles_from(start), here);
    for (int64_t token = start; token < span.last; token += DECODE_TOKENS) {
        Chunk chunk;
        chunk.token = token;
        chunk.tiles = tiles_from(token);
        chunk.first = int(std::max<int64_t>(span.first - token, 0));
        chunk.last = int(std::min<int64_t>(span.last - token, DECODE_TOKENS));
        next = here;
        if (token + DECODE_TOKENS < span.last) pages(token + DECODE_TOKENS, tiles_from(token + DECODE_TOKENS), next);
        for (int64_t head = begin; head < end; head++) {
            const unsigned char *k[DECODE_TILES], *v[DECODE_TILES], *k_ahead[DECODE_TILES], *v_ahead[DECODE_TILES];
            for (int t = 0; t < chunk.tiles; t++) {
                k[t] = here.k[t] + head * k_head;
                v[t] = here.v[t] + head * v_head;
                k_ahead[t] = head + 1 < end ? here.k[t] + (head + 1) * k_head : next.k[t] + begin * k_head;
                v_ahead[t] = head + 1 < end ? here.v[t] + (head + 1) * v_head : next.v[t] + begin * v_head;
            }
            for (int64_t b = 0; b < row_blocks; b++) {
                const DecodeQuery &query = queries[(head - begin) * row_blocks + b];
                DecodeState &state = states[(head - begin) * row_blocks + b];
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
                if (span.knobs) span.knobs(span.context, head, b * rows, query.rows, token, x.s);
                if (!chunk.whole())
                    for (int r = 0; r < query.rows; r++) {
                        float *s = x.s + r * DECODE_TOKENS;
                        std::fill(s, s + chunk.first, -INFINITY);
                        std::fill(s + chunk.last, s + chunk.tiles * TILE, -INFINITY);
                    }
                int32_t dot = soften(span, chunk, query.rows, v, state, x);
                w.count = chunk.tiles;
                for (int t = 0; t < chunk.tiles; t++) {
                    int first = std::clamp(chunk.first - t * TILE, 0, TILE), last = std::clamp(chunk.last - t * TILE, 0, TILE);
                    w.tiles[t] = v[t];
                    w.ahead[t] = b ? v[t] : v_ahead[t];
                    if ((first > 0 || last < TILE) && !kv_is_integer(kv.v.code)) {
                        unsigned char *copy = x.tiles + t * v_bytes;
                        copy_tokens(kv.v, v[t], first, last, copy);
                        w.tiles[t] = copy;
                    }
                }
                decode_values(kv.v.code, dot, query.rows)(w, state.out);
            }
        }
        here = next;
    }
}

namespace {

// Softcap and ALiBi of some rows' logits.
void decode_knobs(const void *context, int64_t head, int64_t first_row, int rows, int64_t token, float *logits) {
    const Part &part = *static_cast<const Part *>(context);
    const Attention &c = part.command;
    int64_t group = c.q_heads / c.kv_heads;
    for (int r = 0; r < rows; r++) {
        const Row &row = part.row[head * group + first_row + r];
        for (int j = 0; j < DECODE_TOKENS; j += W) {
            F x = load(logits + r * DECODE_TOKENS + j);
            if (c.softcap != 0) x = tanh(x / c.softcap) * c.softcap;
            if (c.slopes) x = x - abs(convert(lanes() + int32_t(token + j - row.position))) * row.slope;
            store(logits + r * DECODE_TOKENS + j, x);
        }
    }
}

// What the driver's rows are multiplied by where V has static scales.
void scale_values(const KVTiles &v, int64_t head, int64_t rows, float *acc) {
    if (v.granularity == SCALE_NONE || v.granularity == SCALE_TOKEN_HEAD) return;
    int64_t width = v_width(v.dim);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < v.dim; d++)
            acc[r * width + d] *= v.scale[v.granularity == SCALE_TENSOR ? 0 : v.granularity == SCALE_HEAD ? head : head * v.dim + d];
}

}  // namespace

bool decodes_part(const Part &part) {
    const Attention &c = part.command;
    if (!part.blocks || part.queries != 1 || part.row->tree) return false;
    int64_t blocks = (c.q_heads / c.kv_heads + DECODE_ROWS - 1) / DECODE_ROWS * c.kv_heads;
    int64_t bytes = blocks * int64_t(sizeof(DecodeQuery) + sizeof(DecodeState) + decode_query_floats(c.dim_qk, DECODE_ROWS) * 4);
    return bytes + decode_scratch_bytes(c.cache) + 256 <= PART_SCRATCH;
}

void decode_part(const Part &part) {
    const Attention &c = part.command;
    int64_t first = std::max(part.first, part.row->low), last = std::min(part.last, part.row->high);
    if (first >= last) return;
    int64_t group = c.q_heads / c.kv_heads, blocks = (group + DECODE_ROWS - 1) / DECODE_ROWS, width = out_width(c);
    unsigned char *at = part.scratch;
    auto take = [&](int64_t bytes) {
        unsigned char *piece = at;
        at += (bytes + 63) / 64 * 64;
        return piece;
    };
    DecodeQuery *queries = reinterpret_cast<DecodeQuery *>(take(blocks * c.kv_heads * int64_t(sizeof(DecodeQuery))));
    DecodeState *states = reinterpret_cast<DecodeState *>(take(blocks * c.kv_heads * int64_t(sizeof(DecodeState))));
    int64_t q_bytes = c.q_dtype == F32 ? 4 : 2, token = c.batch->q_indptr[part.sequence];
    const unsigned char *q = static_cast<const unsigned char *>(c.q) + token * c.q_stride * q_bytes;
    for (int64_t i = 0; i < blocks * c.kv_heads; i++) {
        int64_t head = i / blocks, r = head * group + i % blocks * DECODE_ROWS;
        int rows = int(std::min<int64_t>(DECODE_ROWS, (head + 1) * group - r));
        const void *row[DECODE_ROWS];
        for (int j = 0; j < rows; j++) row[j] = q + (r + j) * c.dim_qk * q_bytes;
        float *memory = reinterpret_cast<float *>(take(decode_query_floats(c.dim_qk, rows) * 4));
        decode_prepare(queries[i], memory, c.cache.k, head, rows, row, c.q_dtype, c.scale);
        for (int j = 0; j < rows; j++) {
            states[i].largest[j] = -INFINITY;
            states[i].sum[j] = 0;
        }
        states[i].out = part.acc + r * width;
    }
    DecodeKnobs knobs = c.softcap != 0 || c.slopes ? decode_knobs : nullptr;
    DecodeSpan span{&c.cache, part.blocks, first, last, knobs, &part, c.bf16_probabilities != 0};
    decode_span(span, 0, c.kv_heads, blocks, queries, states, at);
    for (int64_t i = 0; i < blocks * c.kv_heads; i++) {
        int64_t head = i / blocks, r = head * group + i % blocks * DECODE_ROWS;
        for (int j = 0; j < queries[i].rows; j++) {
            part.top[r + j] = states[i].largest[j];
            part.total[r + j] = states[i].sum[j];
        }
        scale_values(c.cache.v, head, queries[i].rows, states[i].out);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
