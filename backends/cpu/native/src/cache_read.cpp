// k and v out of a cache by slot, dequantized: code times scale, rounded once.
#include "kernels.h"
#include "tile_rows.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// One head's tokens. memory: of this thread.
template <int32_t C> static void read(const CacheRead &c, const Piece &piece, unsigned char *memory) {
    const KVTiles &x = piece.keys ? c.cache.k : c.cache.v;
    void *values = piece.keys ? c.k : c.v;
    const int64_t dim = x.dim, width = v_width(dim), vectors = k_vectors(C, dim);
    const int64_t code_bytes = piece.keys ? k_code_bytes(C, dim) : v_code_bytes(C, dim);
    unsigned char *codes = memory;
    StaticScale scale(x, piece.head, codes + width * 4);
    for (int64_t i = piece.begin; i < piece.end; i++) {
        const int64_t slot = c.batch->slots[i];
        const unsigned char *tile = tile_of_slot(x, c.cache.heads, c.cache.tiles, piece.head, slot);
        const int t = int(slot % TILE);
        if (x.granularity == SCALE_TOKEN_HEAD) scale.one = reinterpret_cast<const float *>(tile + code_bytes)[t];
        const unsigned char *dwords = tile + t / kv_per_dword(C) * width * 4;
        const int shift = kv_shift(C, t % kv_per_dword(C));
        const int64_t first = (c.batch->rows[i] * c.cache.heads + piece.head) * dim;
        if (piece.keys) take_key<C>(tile, t, codes, vectors);
        for (int64_t d = 0; d < dim; d += W) {
            F value = kv_decode<C>(piece.keys ? load_codes<C>(codes, d) : take_field(dwords + d * 4, kv_bits(C), shift));
            if (x.granularity != SCALE_NONE) value = value * scale.at(d);
            if (d + W <= dim) store_any(values, first + d, c.dtype, value);
            else store_part(values, first + d, c.dtype, value, int(dim - d));
        }
    }
}

void cache_read(const Command *command, Worker &worker) {
    const CacheRead &c = *static_cast<const CacheRead *>(command);
    const Pieces pieces(c.batch->slots, c.batch->count, c.cache.heads, CHUNK, false);
    int64_t begin, end;
    worker.share(pieces.total(), begin, end);
    for (int64_t i = begin; i < end; i++) {
        const Piece piece = pieces[i];
        with_code(piece.keys ? c.cache.k.code : c.cache.v.code,
                  [&]<int32_t C>(KVCodeOf<C>) { read<C>(c, piece, worker.own); });
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
