// Attention and the merge of its parts.
#pragma once
#include "commands.h"
#include "commands_cache.h"

namespace opsocket {

enum AttentionMask : int32_t { MASK_CAUSAL = 0, MASK_FULL = 1, MASK_TREE = 2 };

// One step, as `AttentionBatch` of the interface has it; null where that has None.
struct AttentionBatch {
    int64_t sequences;  // B
    int64_t table_width;
    const int32_t *q_indptr;      // [B+1]
    const int32_t *kv_lens;       // [B]
    const int32_t *block_table;   // [B, table_width], with a cache
    const int64_t *kv_indptr;     // [B+1], without one
    const int64_t *q_start;       // [B]: position of query 0 less that of key 0; null: kv_len - q_len
    const int64_t *q_positions;   // [T]: position of each query less that of its request's key 0
    const int64_t *mask_indptr;   // [B+1]
};

// q[T, q_heads, dim_qk], out[T, q_heads, dim_vo], lse[T, q_heads]; strides of rows, in elements.
struct Attention : Command {
    const AttentionBatch *batch;
    const void *q;
    int64_t q_stride;
    void *out;
    int64_t out_stride;
    float *lse;  // null where nobody asks
    int64_t lse_stride;
    const float *sinks, *slopes;  // [q_heads], or null
    const unsigned char *tree;    // MASK_TREE only
    KVTilesPair cache;            // cache.k.data null: keys and values are contiguous
    const void *k, *v;            // [Tk, kv_heads, dim_qk], [Tk, kv_heads, dim_vo]
    int64_t k_stride, v_stride;
    int64_t window_left, window_right;  // INT64_MAX: unlimited; causal is in window_right already
    int32_t q_heads, kv_heads, dim_qk, dim_vo;
    int32_t q_dtype, kv_dtype, out_dtype, mask;
    float scale, softcap;     // softcap 0: off
    int32_t bf16_probabilities;  // whether they may be rounded before they meet V
    int32_t split_queries;    // sequences of at most so many queries are split over their keys; 0: none
};

}  // namespace opsocket
