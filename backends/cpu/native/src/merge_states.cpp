// The union of attention over disjoint key sets: parts weighed by e^(lse - largest lse). A part with LSE -inf is never
// read, so that whatever its output holds adds nothing.
#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void merge_states(const Command *command, Worker &worker) {
    const MergeStates &c = *static_cast<const MergeStates *>(command);
    int64_t begin, end;
    worker.share(c.rows * c.heads, begin, end);
    by_dtype(c.in_dtype, [&](auto type) {
        constexpr int32_t T = type;
        for (int64_t i = begin; i < end; i++) {
            int64_t row = i / c.heads, head = i % c.heads;
            float top = -INFINITY;
            for (int64_t part = 0; part < c.parts; part++) {
                float lse = c.lses[part * c.lses_part_stride + i];
                if (!(lse <= top)) top = lse;
            }
            void *y = at(c.y, row * c.y_stride + head * c.head_dim, c.out_dtype);
            const void *outs = at(c.outs, row * c.outs_row_stride + head * c.head_dim, T);
            auto weight = [&](int64_t part) {
                float lse = c.lses[part * c.lses_part_stride + i];
                return lse == -INFINITY ? 0.0f : float(std::exp(double(lse) - double(top)));
            };
            double total = 0;
            for (int64_t part = 0; part < c.parts; part++) total += weight(part);
            c.lse[i] = total == 0 ? -INFINITY : float(std::log(total) + double(top));
            float inverse = total == 0 ? 0.0f : float(1.0 / total);
            // Sums of a stretch of the head in scratch memory, so that each part's weight is computed twice and no more.
            constexpr int64_t STRETCH = OWN_BYTES / 8;
            float *sums = reinterpret_cast<float *>(worker.own);
            for (int64_t from = 0; from < c.head_dim; from += STRETCH) {
                int64_t count = std::min(STRETCH, c.head_dim - from);
                std::memset(sums, 0, size_t(count + W) * sizeof(float));
                for (int64_t part = 0; part < c.parts; part++) {
                    float share = weight(part) * inverse;
                    if (c.lses[part * c.lses_part_stride + i] == -INFINITY) continue;
                    const void *out = at(outs, part * c.outs_part_stride + from, T);
                    int64_t d = 0;
                    for (; d + W <= count; d += W) store(sums + d, load(sums + d) + load_t<T>(out, d) * share);
                    for (; d < count; d++) sums[d] += load_one(out, d, T) * share;
                }
                int64_t d = 0;
                for (; d + W <= count; d += W) store_any(y, from + d, c.out_dtype, load(sums + d));
                for (; d < count; d++) store_one(y, from + d, c.out_dtype, sums[d]);
            }
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
