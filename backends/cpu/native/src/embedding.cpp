// Rows of a table in panels, dequantized and rounded once.
#include "kernels.h"
#include "small_floats.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

static float weight_scale(const uint8_t *scales, int64_t row, bool is_f32) {
    if (is_f32) {
        float value;
        std::memcpy(&value, scales + row * 4, 4);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, scales + row * 2, 2);
    return half_to_float(half);
}

static float code_number(const Panels &w, int stored) {
    if (w.code == E4M3FN) return e4m3fn(set(int32_t(stored)))[0];
    if (w.code == E2M1) return twice_e2m1(set(int32_t(stored)))[0];
    return float(stored - w.zero_offset);
}

static void coded_row(const Embedding &c, int64_t id, float *row) {
    const Panels &w = c.weight;
    const int64_t lane = id % PANEL, slab = w.slab(), fields = 8 / w.bits, steps = slab / 4 / fields;
    const uint8_t *stream = w.data + id / PANEL * w.panel_bytes(), mask = uint8_t((1 << w.bits) - 1);
    for (int64_t first = 0; first < w.k; first += w.group, stream += w.group_bytes()) {
        const uint8_t *scales = stream + w.group / slab * w.slab_bytes();
        const float scale = weight_scale(scales, lane, w.scale_f32);
        const float minimum = w.has_minimum ? weight_scale(scales + w.scale_bytes(), lane, w.scale_f32) : 0;
        const int64_t last = first + w.group < c.k ? w.group : c.k - first;
        for (int64_t i = 0; i < last; i++) {
            const int64_t in_slab = i % slab, field = in_slab / (4 * steps), step = in_slab / 4 % steps;
            const uint8_t *bytes = stream + i / slab * w.slab_bytes() + (step * PANEL + lane) * 4;
            const float value = scale * code_number(w, bytes[in_slab % 4] >> (field * w.bits) & mask);
            const int64_t column = c.permutation ? c.permutation[first + i] : first + i;
            row[column] = w.has_minimum ? value - minimum : value;
        }
    }
}

static void float_row(const Embedding &c, int64_t id, float *row) {
    const int64_t panel = id / PANEL, lane = id % PANEL;
    for (int64_t k = 0; k < c.k; k++) {
        const int64_t i = c.float_dtype == BF16 ? ((panel * ((c.k + 1) / 2) + k / 2) * PANEL + lane) * 2 + k % 2
                                                : (panel * c.k + k) * PANEL + lane;
        row[k] = load_one(c.weight.data, i, c.float_dtype);
    }
}

void embedding(const Command *command, Worker &worker) {
    const Embedding &c = *static_cast<const Embedding *>(command);
    float *row = reinterpret_cast<float *>(worker.own);
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    for (int64_t t = begin; t < end; t++) {
        // An f32 row is written in place, another one rounded from this thread's memory.
        float *target = c.dtype == F32 ? static_cast<float *>(c.y) + t * c.y_stride : row;
        if (c.ids[t] < 0 || c.ids[t] >= c.weight.n)  // checked only under checked="deep"
            for (int64_t k = 0; k < c.k; k++) target[k] = __builtin_nanf("");
        else if (c.float_dtype < 0) coded_row(c, c.ids[t], target);
        else float_row(c, c.ids[t], target);
        if (c.dtype != F32)
            for (int64_t k = 0; k < c.k; k++) store_one(c.y, t * c.y_stride + k, c.dtype, target[k]);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
