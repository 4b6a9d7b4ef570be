// y = x / sqrt(mean(x^2) + eps) * weight in f32, of rows or of heads; with a residual, of x + residual as rounded.
#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// The sum of squares of x, or of x + residual, which is left in `sum`, rounded.
template <int32_t T> static float squares(const void *x, const void *residual, void *sum_out, int64_t width) {
    F total[4] = {};
    int64_t i = 0;
    auto take = [&](F v, int lane, int count) {
        if (residual) {
            // What is normalized is what the caller gets: the rounded sum.
            if (count == W) {
                store_t<T>(sum_out, i, v + load_t<T>(residual, i));
                v = load_t<T>(sum_out, i);
            } else {
                store_part(sum_out, i, T, v + load_part(residual, i, T, count), count);
                v = load_part(sum_out, i, T, count);
            }
        }
        total[lane] += v * v;
    };
    for (; i + 4 * W <= width;)
#pragma GCC unroll 4
        for (int lane = 0; lane < 4; lane++, i += W) take(load_t<T>(x, i), lane, W);
    for (; i + W <= width; i += W) take(load_t<T>(x, i), 0, W);
    if (i < width) take(load_part(x, i, T, int(width - i)), 1, int(width - i));
    return sum((total[0] + total[1]) + (total[2] + total[3]));
}

template <int32_t T>
static void scale_row(const void *x, const float *weight, float scale, void *y, int64_t width) {
    int64_t i = 0;
    for (; i + W <= width; i += W) store_t<T>(y, i, load_t<T>(x, i) * scale * load(weight + i));
    int rest = int(width - i);
    if (rest) store_part(y, i, T, load_part(x, i, T, rest) * scale * load_part(weight, i, F32, rest), rest);
}

void rms_norm(const Command *command, Worker &worker) {
    const RMSNorm &c = *static_cast<const RMSNorm *>(command);
    int64_t begin, end;
    worker.share(c.rows * c.heads, begin, end);
    by_dtype(c.dtype, [&](auto type) {
        constexpr int32_t T = type;
        for (int64_t i = begin; i < end; i++) {
            int64_t row = i / c.heads, head = i % c.heads;
            const void *x = at(c.x, row * c.x_stride + head * c.width, T);
            const void *residual = c.residual ? at(c.residual, row * c.residual_stride, T) : nullptr;
            void *joined = c.residual ? at(c.sum, row * c.width, T) : nullptr;
            double mean = double(squares<T>(x, residual, joined, c.width)) / double(c.width);
            float scale = float(1.0 / std::sqrt(mean + c.eps));
            scale_row<T>(residual ? joined : x, c.weight, scale, at(c.y, row * c.y_stride + head * c.width, T), c.width);
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
