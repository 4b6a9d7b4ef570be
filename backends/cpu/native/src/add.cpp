// y = a + b, rounded once.
#include "kernels.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void add(const Command *command, Worker &worker) {
    const Add &c = *static_cast<const Add *>(command);
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    for (int64_t row = begin; row < end; row++) {
        const void *a = at(c.a, row * c.a_stride, c.dtype), *b = at(c.b, row * c.b_stride, c.dtype);
        void *y = at(c.y, row * c.y_stride, c.dtype);
        int64_t i = 0;
        for (; i + W <= c.width; i += W) store_any(y, i, c.dtype, load_any(a, i, c.dtype) + load_any(b, i, c.dtype));
        for (; i < c.width; i++) store_one(y, i, c.dtype, load_one(a, i, c.dtype) + load_one(b, i, c.dtype));
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
