// k and v into a cache by slot, quantized by the pinned quantizer (`KVFormat` in core/opsocket/operators/layout.py).
#include "kernels.h"
#include "tile_rows.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// A row of any float type as f32, zeros up to the next multiple of TILE. Returns the bits of the largest magnitude:
// compared as integers, a NaN is the largest of all.
template <int32_t T> static int32_t widen(float *row, const void *values, int64_t dim) {
    I most = set(0);
    int64_t d = 0;
    for (; d + W <= dim; d += W) {
        F x = load_t<T>(values, d);
        I size = as_int(x) & 0x7fffffff;
        most = size > most ? size : most;
        store(row + d, x);
    }
    for (; d < v_width(dim); d += W) {
        F x = load_part(values, d, T, int(std::clamp<int64_t>(dim - d, 0, W)));
        I size = as_int(x) & 0x7fffffff;
        most = size > most ? size : most;
        store(row + d, x);
    }
    int32_t largest = 0;
    for (int i = 0; i < W; i++) largest = std::max(largest, most[i]);
    return largest;
}

static int32_t widen(float *row, const void *values, int64_t dim, int32_t dtype) {
    return dtype == F32   ? widen<F32>(row, values, dim)
           : dtype == F16 ? widen<F16>(row, values, dim)
                          : widen<BF16>(row, values, dim);
}

// The scale of a token: its largest magnitude over the largest code, as it is stored.
static float token_scale(const KVTiles &x, int32_t largest) {
    float most;
    std::memcpy(&most, &largest, 4);
    float scale = most / kv_max_code(x.code);
    return x.scale_dtype == F16 ? half_to_float(float_to_half(scale)) : scale;
}

// A token's codes, as `store_codes` leaves them. row: memory for it in f32. stored: where its own scale goes.
template <int32_t C>
static void encode(const KVTiles &x, const void *given, int32_t dtype, StaticScale scale, float *stored, float *row,
                   unsigned char *codes) {
    const int64_t width = v_width(x.dim);
    const int32_t largest = widen(row, given, x.dim, dtype);
    if (x.granularity == SCALE_TOKEN_HEAD) {
        scale.one = *stored = token_scale(x, largest);
        if (scale.one == 0) {  // of zeros, or of values whose scale is too small to be stored
            std::fill_n(row, width, 0.0f);
            scale.one = 1;
        }
    }
    const bool divide = x.granularity != SCALE_NONE;
    for (int64_t d = 0; d < width; d += W) {
        F value = load(row + d);
        if (divide) value = value / scale.at(d);
        store_codes<C>(codes, d, kv_encode<C>(value));
    }
}

// Whether these slots begin with those of a whole tile, in order.
static bool fill_a_tile(const int64_t *slots, int64_t count) {
    if (slots[0] % TILE || count < TILE) return false;
    for (int t = 1; t < TILE; t++)
        if (slots[t] != slots[0] + t) return false;
    return true;
}

// One head's tokens. A whole tile is written at once, each of its lines once. memory: of this thread.
template <int32_t C> static void write(const CacheWrite &c, const Piece &piece, unsigned char *memory) {
    const KVTiles &x = piece.keys ? c.cache.k : c.cache.v;
    const void *values = piece.keys ? c.k : c.v;
    const int64_t stride = piece.keys ? c.k_stride : c.v_stride, dim = x.dim, width = v_width(dim);
    const int64_t vectors = k_vectors(C, dim), code_bytes = piece.keys ? k_code_bytes(C, dim) : v_code_bytes(C, dim);
    const bool as_given = C == c.dtype && x.granularity == SCALE_NONE && width == dim;
    const bool tiles_fit = (TILE + 2) * width * 4 <= int64_t(OWN_BYTES);
    StaticScale scale(x, piece.head, memory + width * 4);
    auto codes_of = [&](int64_t i, unsigned char *tile, int t, int place) -> const unsigned char * {
        const void *given = at(values, c.batch->rows[i] * stride + piece.head * dim, c.dtype);
        if (as_given) return static_cast<const unsigned char *>(given);
        unsigned char *codes = memory + (place + 2) * width * 4;
        float *stored = reinterpret_cast<float *>(tile + code_bytes) + t;
        encode<C>(x, given, c.dtype, scale, stored, reinterpret_cast<float *>(memory), codes);
        if (piece.keys) pack_key<C>(codes, vectors);
        return codes;
    };
    for (int64_t i = piece.begin; i < piece.end;) {
        const int64_t slot = c.batch->slots[i];
        unsigned char *tile = tile_of_slot(x, c.cache.heads, c.cache.tiles, piece.head, slot);
        const int first = int(slot % TILE);
        const bool whole = tiles_fit && fill_a_tile(c.batch->slots + i, piece.end - i);
        const int count = whole ? TILE : 1;
        const unsigned char *codes[TILE];
        for (int t = 0; t < count; t++) codes[t] = codes_of(i + t, tile, first + t, t);
        if (piece.keys) whole ? put_keys(tile, codes, vectors) : put_key(tile, first, codes[0], vectors);
        else whole ? put_values<C>(tile, codes, width) : put_value<C>(tile, first, codes[0], width);
        i += count;
    }
}

void cache_write(const Command *command, Worker &worker) {
    const CacheWrite &c = *static_cast<const CacheWrite *>(command);
    const Pieces pieces(c.batch->slots, c.batch->count, c.cache.heads, CHUNK, true);
    int64_t begin, end;
    worker.share(pieces.total(), begin, end);
    for (int64_t i = begin; i < end; i++) {
        const Piece piece = pieces[i];
        with_code(piece.keys ? c.cache.k.code : c.cache.v.code,
                  [&]<int32_t C>(KVCodeOf<C>) { write<C>(c, piece, worker.own); });
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
