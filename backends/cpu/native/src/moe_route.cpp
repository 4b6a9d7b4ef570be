// Routing to experts: softmax in f32, the top_k largest in falling order, ties to the lower index.
#include <functional>

#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void moe_route(const Command *command, Worker &worker) {
    const MoERoute &c = *static_cast<const MoERoute *>(command);
    uint64_t *keys = reinterpret_cast<uint64_t *>(worker.shared) + worker.index * c.experts;
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    for (int64_t row = begin; row < end; row++) {
        const void *logits = at(c.logits, row * c.logits_stride, c.dtype);
        for (int64_t i = 0; i < c.experts; i++) keys[i] = order_key(load_one(logits, i, c.dtype), i);
        std::partial_sort(keys, keys + c.top_k, keys + c.experts, std::greater<uint64_t>());
        float top = load_one(logits, index_of(keys[0]), c.dtype);
        double total = 0;
        int64_t i = 0;
        for (; i < c.experts; i += W) {
            int count = int(std::min<int64_t>(W, c.experts - i));
            F e = exp(load_part(logits, i, c.dtype, count) - top);
            for (int lane = 0; lane < count; lane++) total += e[lane];
        }
        float *weights = c.weights + row * c.top_k;
        int64_t *chosen = c.chosen + row * c.top_k;
        double kept = 0;
        for (int64_t rank = 0; rank < c.top_k; rank += W) {
            int count = int(std::min<int64_t>(W, c.top_k - rank));
            F logit = set(0.0f);
            for (int lane = 0; lane < count; lane++) {
                chosen[rank + lane] = index_of(keys[rank + lane]);
                logit[lane] = load_one(logits, chosen[rank + lane], c.dtype);
            }
            F e = exp(logit - top);
            for (int lane = 0; lane < count; lane++) kept += weights[rank + lane] = e[lane];
        }
        float inverse = float(1.0 / (c.renormalize ? kept : total));
        for (int64_t rank = 0; rank < c.top_k; rank++) weights[rank] *= inverse;
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
