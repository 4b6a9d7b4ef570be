// A part of one sequence's attention where queries are few: all of its queries and heads, over a range of its keys.
// This is the border between the driver (attention.cpp), which cuts sequences into parts of equal bytes, one thread to
// a part, and joins them, and what computes a part: attention_decode.cpp, or the tiles of attention_tile.h.
#pragma once
#include "attention_rows.h"

namespace opsocket {

// Row r = head * queries + i is query i of query head `head`; so the rows of one KV head are consecutive:
// [kv_head * group * queries, (kv_head + 1) * group * queries).
//
// The keys [first, last) are within what some row sees, but for the few below the first multiple of 16: first is a
// multiple of 16, and last is one, or the end of what is seen. Keys at or past `last` in the last tile, and keys that
// a row does not see by its [low, high), may hold anything, NaN included; their probability is 0 and their V must not
// be multiplied: not by 0 either where it is infinite or NaN. (That also holds for a key which one row sees and another does
// not: tests/cpu/test_attention.py::test_values_hidden_from_a_query_never_reach_it.)
//
// The state (acc, top, total) comes initialised to (0, -inf, 0) and goes back unnormalised: `top` the largest logit
// (natural, after scale, softcap and ALiBi) or a little less, total the sum of exp(logit - top), acc the same sum times
// v. Where a row sees no key of the part, its state stays as it came. Sinks, the division and the LSE are the driver's.
struct Part {
    const Attention &command;
    int64_t sequence;
    const int32_t *blocks;  // the sequence's row of the block table; null without a cache
    int32_t first, last;
    int32_t queries;        // of the sequence
    const float *q;         // [q_heads * queries, dim_qk], f32 (exact), not scaled
    const Row *row;         // [q_heads * queries]
    float *acc;             // [q_heads * queries, v_width(dim_vo)], 64-byte aligned
    float *top, *total;     // [q_heads * queries]
    unsigned char *scratch;  // of this thread, 64-byte aligned; at least PART_SCRATCH bytes
};

namespace OPSOCKET_LEVEL {

// Kernels for few queries over a cache (attention_decode.cpp), and whether they take a part.
#if OPSOCKET_AMX
// Those of level avx512_vnni, which read caches at the memory's pace.
}  // namespace OPSOCKET_LEVEL
namespace avx512_vnni {
bool decodes_part(const Part &part);
void decode_part(const Part &part);
}  // namespace avx512_vnni
namespace OPSOCKET_LEVEL {
using avx512_vnni::decode_part, avx512_vnni::decodes_part;
#else
bool decodes_part(const Part &part);
void decode_part(const Part &part);
#endif

constexpr int64_t PART_SCRATCH = int64_t(3) << 18;  // 768 KiB

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
