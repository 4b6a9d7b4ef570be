// What surrounds a mixture of experts' products: routing, sorting by expert, weighted sums.
#include <functional>

#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// Softmax in f32, the top_k largest in falling order, ties to the lower index.
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

// A counting sort, by one thread: of a prompt's thousands of choices it takes a few microseconds. A number that is no
// expert's, which is undefined, counts as the nearest one's.
void moe_sort(const Command *command, Worker &worker) {
    const MoESort &c = *static_cast<const MoESort *>(command);
    if (worker.index != 0) return;
    const int64_t choices = c.rows * c.top_k, last = c.experts - 1;
    int64_t *offsets = c.offsets;
    std::fill_n(offsets, c.experts + 1, 0);
    for (int64_t i = 0; i < choices; i++) offsets[std::clamp<int64_t>(c.chosen[i], 0, last) + 1]++;
    for (int64_t e = 0; e < c.experts; e++) offsets[e + 1] += offsets[e];
    for (int64_t token = 0, i = 0; token < c.rows; token++) {
        for (int64_t rank = 0; rank < c.top_k; rank++, i++) {
            const int64_t slot = offsets[std::clamp<int64_t>(c.chosen[i], 0, last)]++;
            c.slots[i] = slot, c.tokens[slot] = token;
        }
    }
    // Each expert's offset has moved on to where the next one's was.
    for (int64_t e = c.experts; e > 0; e--) offsets[e] = offsets[e - 1];
    offsets[0] = 0;
}

// Columns begin to end of a token's sum. chosen: its rows of x.
template <int32_t T>
static void add_rows(const MoECombine &c, const void *const *chosen, const float *weights, void *y, int64_t begin,
                     int64_t end) {
    constexpr int N = 4;
    int64_t i = begin;
    for (; i + N * W <= end; i += N * W) {
        F sum[N] = {};
        for (int64_t j = 0; j < c.top_k; j++)
            for (int n = 0; n < N; n++) sum[n] += load_t<T>(chosen[j], i + n * W) * weights[j];
        for (int n = 0; n < N; n += 2) store_two<T>(y, i + n * W, sum[n], sum[n + 1]);
    }
    for (; i < end; i += W) {
        const int rest = int(std::min<int64_t>(W, end - i));
        F sum = set(0.0f);
        for (int64_t j = 0; j < c.top_k; j++) sum += load_part(chosen[j], i, T, rest) * weights[j];
        store_part(y, i, T, sum, rest);
    }
}

// A slot that is no row of x, which is undefined, gives NaN, and no memory of others.
void moe_combine(const Command *command, Worker &worker) {
    const MoECombine &c = *static_cast<const MoECombine *>(command);
    constexpr int64_t PIECE = 2048;
    const int64_t pieces = (c.width + PIECE - 1) / PIECE;
    const void **chosen = reinterpret_cast<const void **>(worker.shared) + worker.index * c.top_k;
    int64_t first, last;
    worker.share(c.rows * pieces, first, last);
    by_dtype(c.dtype, [&](auto type) {
        constexpr int32_t T = type;
        for (int64_t i = first; i < last; i++) {
            const int64_t row = i / pieces, begin = i % pieces * PIECE, end = std::min(c.width, begin + PIECE);
            void *y = at(c.y, row * c.y_stride, T);
            bool is_known = true;
            for (int64_t j = 0; j < c.top_k; j++) {
                const int64_t slot = c.slots[row * c.top_k + j];
                is_known = is_known && slot >= 0 && slot < c.height;
                chosen[j] = is_known ? at(c.x, slot * c.x_stride, T) : nullptr;
            }
            if (is_known) add_rows<T>(c, chosen, c.weights + row * c.top_k, y, begin, end);
            else std::memset(at(y, begin, T), 0xff, size_t(end - begin) * (T == F32 ? 4 : 2));
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
