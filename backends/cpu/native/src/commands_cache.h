// The four operators over a KV cache of layout "tiles16": see tiles.h for where its bytes lie.
#pragma once
#include "commands.h"

namespace opsocket {

// How elements are stored. The first three are DType's.
enum KVCode : int32_t {
    KV_F32 = 0,
    KV_F16 = 1,
    KV_BF16 = 2,
    KV_F8E4M3FN = 3,
    KV_F8E4M3FNUZ = 4,
    KV_F8E5M2 = 5,
    KV_I8 = 6,
    KV_I4 = 7,
    KV_I2 = 8,
    KV_CODES
};

// Which elements share a scale; the first has none, the last stores its scales in the tiles.
enum Granularity : int32_t { SCALE_NONE = 0, SCALE_TENSOR = 1, SCALE_HEAD = 2, SCALE_CHANNEL = 3, SCALE_TOKEN_HEAD = 4 };

// The keys or the values of one cache.
struct KVTiles {
    unsigned char *data;  // [blocks, heads, tiles of a block, tile_bytes]
    const float *scale;   // static: [1], [heads] or [heads, dim] by granularity; else null
    int64_t tile_bytes;
    int32_t code, granularity;
    int32_t scale_dtype;  // of SCALE_TOKEN_HEAD: what a scale is rounded to before it is used and stored (as f32)
    int32_t dim;          // of a head
};

// heads: of keys and values. tiles: of 16 tokens in a block.
struct KVTilesPair {
    KVTiles k, v;
    int64_t heads, tiles;
};

// A batch of slots (block * block_size + offset), and the row of k and v that belongs to each. For writes there is no
// slot twice and none that is skipped, and slots of one tile stand together.
struct CacheSlots {
    int64_t count;
    const int64_t *slots, *rows;
};

struct CacheWrite : Command {
    KVTilesPair cache;
    const void *k;  // [rows, heads, dim of k], rows k_stride apart
    int64_t k_stride;
    const void *v;  // [rows, heads, dim of v], rows v_stride apart
    int64_t v_stride;
    const CacheSlots *batch;
    int32_t dtype;  // of k and v
};

struct CacheRead : Command {
    KVTilesPair cache;
    void *k;  // [rows, heads, dim of k]
    void *v;  // [rows, heads, dim of v]
    const CacheSlots *batch;
    int32_t dtype;  // of k and v
};

// Slots, or blocks, from src[i] to dst[i]; no dst twice. Slots: dst of one tile stand together.
// overlaps: whether some dst is also a src. scratch: where that many entries need more memory than a thread has of its
// own (MOVE_BYTES each), scratch_bytes for each thread; else null.
struct CacheMoves {
    int64_t count;
    const int64_t *src, *dst;
    unsigned char *scratch;
    int64_t scratch_bytes;
    int32_t overlaps;
};

constexpr int64_t MOVE_BYTES = 64;

struct CacheMove : Command {
    KVTilesPair src, dst;
    const CacheMoves *batch;
};

struct CacheCopyBlocks : Command {
    const unsigned char *src[2];  // planes of whole blocks
    unsigned char *dst[2];
    int64_t block_bytes[2];
    const CacheMoves *batch;
};

}  // namespace opsocket
