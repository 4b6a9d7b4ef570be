// y = gate / (1 + e^-gate) * up, in f32, rounded once.
#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void silu_mul(const Command *command, Worker &worker) {
    const SiluMul &c = *static_cast<const SiluMul *>(command);
    combine_rows(worker, c.rows, c.width, c.dtype, c.gate, c.gate_stride, c.up, c.up_stride, c.y, c.y_stride,
                 []<int N>(F (&gate)[N], const F (&up)[N]) {
                     F e[N];
                     for (int i = 0; i < N; i++) e[i] = -gate[i];
                     exp(e);
                     for (int i = 0; i < N; i++) gate[i] = gate[i] / (1.0f + e[i]) * up[i];
                 });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
