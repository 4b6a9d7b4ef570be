// Rows of a matrix, bit by bit. What a row number outside of the matrix gives is undefined: here NaN, and no memory of
// others.
#include "kernels.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void take_rows(const Command *command, Worker &worker) {
    const TakeRows &c = *static_cast<const TakeRows *>(command);
    size_t bytes = size_t(c.width) * (c.dtype == F32 ? 4 : 2);
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    for (int64_t row = begin; row < end; row++) {
        void *y = at(c.y, row * c.y_stride, c.dtype);
        int64_t id = c.ids[row];
        if (id >= 0 && id < c.height) std::memcpy(y, at(c.x, id * c.x_stride, c.dtype), bytes);
        else std::memset(y, 0xff, bytes);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
