// Whole blocks from cache to cache, as if all were read before any is written. A block is one run of bytes of a plane.
#include "kernels.h"

#include <algorithm>

namespace opsocket {
namespace OPSOCKET_LEVEL {

void cache_copy_blocks(const Command *command, Worker &worker) {
    const CacheCopyBlocks &c = *static_cast<const CacheCopyBlocks *>(command);
    const CacheMoves &b = *c.batch;
    const bool buffered = b.overlaps && c.src[0] == c.dst[0];
    const int64_t bytes = b.scratch ? b.scratch_bytes : int64_t(OWN_BYTES);
    unsigned char *scratch = b.scratch ? b.scratch + worker.index * bytes : worker.own;
    if (!b.count) return;
    // Blocks are cut into strips of so many bytes: a strip of all blocks, where they are buffered, is one piece.
    const int64_t strip = buffered ? bytes / b.count / MOVE_BYTES * MOVE_BYTES : int64_t(1) << 15;
    const int64_t strips[2] = {(c.block_bytes[0] + strip - 1) / strip, (c.block_bytes[1] + strip - 1) / strip};
    const int64_t each = buffered ? 1 : b.count;
    for (int64_t i; (i = worker.next(0, (strips[0] + strips[1]) * each)) >= 0;) {
        const int64_t group = i / each;
        const int plane = group >= strips[0];
        const int64_t offset = (group - (plane ? strips[0] : 0)) * strip, block = c.block_bytes[plane];
        const size_t size = size_t(std::min(strip, block - offset));
        const unsigned char *src = c.src[plane] + offset;
        unsigned char *dst = c.dst[plane] + offset;
        if (!buffered) {
            const int64_t m = i % each;
            std::memcpy(dst + b.dst[m] * block, src + b.src[m] * block, size);
            continue;
        }
        for (int64_t m = 0; m < b.count; m++) std::memcpy(scratch + m * int64_t(size), src + b.src[m] * block, size);
        for (int64_t m = 0; m < b.count; m++) std::memcpy(dst + b.dst[m] * block, scratch + m * int64_t(size), size);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
