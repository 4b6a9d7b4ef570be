// The index of the largest of each row.
#include "argmax.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void argmax(const Command *command, Worker &worker) {
    const Argmax &c = *static_cast<const Argmax *>(command);
    by_dtype(c.dtype, [&](auto type) {
        constexpr int32_t T = type;
        int64_t begin, end;
        if (c.rows >= worker.count || c.width < 4096) {
            worker.share(c.rows, begin, end);
            for (int64_t row = begin; row < end; row++)
                c.y[row] = best_of<T>(at(c.x, row * c.x_stride, T), 0, c.width).index;
            return;
        }
        // Fewer rows than threads: every thread has a part of each row, and the first compares what they found.
        Best *found = reinterpret_cast<Best *>(worker.shared);
        worker.share(c.width, begin, end);
        for (int64_t row = 0; row < c.rows; row++)
            found[row * worker.count + worker.index] = best_of<T>(at(c.x, row * c.x_stride, T), begin, end);
        worker.barrier();
        if (worker.index) return;
        for (int64_t row = 0; row < c.rows; row++) {
            Best *parts = found + row * worker.count, best = parts[0];
            for (int i = 1; i < worker.count; i++)
                if (better(parts[i], best)) best = parts[i];
            c.y[row] = best.index;
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
