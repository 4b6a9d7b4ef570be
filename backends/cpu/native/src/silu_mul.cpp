// y = gate / (1 + e^-gate) * up, in f32, rounded once.
#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void silu_mul(const Command *command, Worker &worker) {
    const SiluMul &c = *static_cast<const SiluMul *>(command);
    combine_rows(worker, c.rows, c.width, c.dtype, c.gate, c.gate_stride, c.up, c.up_stride, c.y, c.y_stride,
                 [](F gate, F up) { return gate / (1.0f + exp(-gate)) * up; });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
