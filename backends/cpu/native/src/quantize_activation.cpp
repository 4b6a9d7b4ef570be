// codes, scale of rows of x: scheme "i8_token".
#include "kernels.h"
#include "matmul_a8_rows.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void quantize_activation(const Command *command, Worker &worker) {
    const QuantizeActivation &c = *static_cast<const QuantizeActivation *>(command);
    float *buffer = reinterpret_cast<float *>(worker.own);
    int64_t begin, end, padded = whole_blocks(c.k), whole = c.k / 16 * 16;
    worker.share(c.rows, begin, end);
    for (int64_t row = begin; row < end; row++) {
        const float *x = as_f32_row(c.x, row * c.x_stride, c.k, c.x_dtype, nullptr, buffer);
        int8_t *codes = c.codes + row * c.k, rest[16];
        float scale = largest_magnitude(x, padded) / 127.0f;
        codes_of(x, whole, scale, codes);
        if (whole < c.k) {
            codes_of(x + whole, 16, scale, rest);
            std::memcpy(codes + whole, rest, size_t(c.k - whole));
        }
        c.scale[row] = scale;
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
