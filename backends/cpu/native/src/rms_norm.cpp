// y = x / sqrt(mean(x^2) + eps) * weight in f32, of rows or of heads; with a residual, of x + residual as rounded.
#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int CHAINS = 4;  // sums that do not wait for each other

#if OPSOCKET_AVX512_BF16
// By an instruction that takes two columns at a time, but squares below 2^-126 for 0.
static float sum_of_squares_in_pairs(const void *x, int64_t width) {
    __m512 total[CHAINS] = {};
    auto take = [&](__m512 &sum, __m512i pairs) { sum = _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)pairs); };
    int64_t i = 0;
    while (i + CHAINS * 2 * W <= width)
        for (int chain = 0; chain < CHAINS; chain++, i += 2 * W) take(total[chain], _mm512_loadu_si512(at(x, i, BF16)));
    for (; i < width; i += 2 * W) {
        const int rest = int(std::min<int64_t>(2 * W, width - i));
        take(total[0], _mm512_maskz_loadu_epi16(~__mmask32(0) >> (2 * W - rest), at(x, i, BF16)));
    }
    return sum((F)_mm512_add_ps(_mm512_add_ps(total[0], total[1]), _mm512_add_ps(total[2], total[3])));
}
#endif

template <int32_t T> static float sum_of_squares(const void *x, int64_t width) {
#if OPSOCKET_AVX512_BF16
    if constexpr (T == BF16) {
        const float total = sum_of_squares_in_pairs(x, width);
        if (!(total < 0x1p-60f)) return total;  // what it lacks is nothing beside it
    }
#endif
    F total[CHAINS] = {};
    int64_t i = 0;
    while (i + CHAINS * W <= width)
        for (int chain = 0; chain < CHAINS; chain++, i += W) {
            const F v = load_t<T>(x, i);
            total[chain] += v * v;
        }
    for (; i < width; i += W) {
        const F v = load_part(x, i, T, int(std::min<int64_t>(W, width - i)));
        total[0] += v * v;
    }
    return sum((total[0] + total[1]) + (total[2] + total[3]));
}

template <int32_t T>
static void scale_row(const void *x, const float *weight, float scale, void *y, int64_t width) {
    int64_t i = 0;
    for (; i + 2 * W <= width; i += 2 * W)
        store_two<T>(y, i, load_t<T>(x, i) * scale * load(weight + i),
                     load_t<T>(x, i + W) * scale * load(weight + i + W));
    for (; i < width; i += W) {
        const int rest = int(std::min<int64_t>(W, width - i));
        store_part(y, i, T, load_part(x, i, T, rest) * scale * load_part(weight, i, F32, rest), rest);
    }
}

void rms_norm(const Command *command, Worker &worker) {
    const RMSNorm &c = *static_cast<const RMSNorm *>(command);
    int64_t begin, end;
    worker.share(c.rows * c.heads, begin, end);
    by_dtype(c.dtype, [&](auto type) {
        constexpr int32_t T = type;
        // A row is scaled after the next one has been summed: by then its scale, a chain of divisions, is there.
        const void *x = nullptr;
        void *y = nullptr;
        float scale = 0;
        auto finish = [&] {
            if (y) scale_row<T>(x, c.weight, scale, y, c.width);
        };
        for (int64_t i = begin; i < end; i++) {
            const int64_t row = i / c.heads, head = i % c.heads;
            const void *next = at(c.x, row * c.x_stride + head * c.width, T);
            if (c.residual) {
                void *joined = at(c.sum, row * c.width, T);
                combine<T>(next, at(c.residual, row * c.residual_stride, T), joined, 0, c.width, Sum{});
                next = joined;  // what is normalized is what the caller gets: the rounded sum
            }
            const double mean = double(sum_of_squares<T>(next, c.width)) / double(c.width);
            finish();
            x = next, y = at(c.y, row * c.y_stride + head * c.width, T);
            scale = float(1.0 / std::sqrt(mean + c.eps));
        }
        finish();
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
