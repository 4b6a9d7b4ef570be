// y = a + b, rounded once.
#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void add(const Command *command, Worker &worker) {
    const Add &c = *static_cast<const Add *>(command);
    combine_rows(worker, c.rows, c.width, c.dtype, c.a, c.a_stride, c.b, c.b_stride, c.y, c.y_stride, Sum{});
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
