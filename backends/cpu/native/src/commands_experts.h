// A mixture of experts, but for its products.
#pragma once
#include "commands.h"

namespace opsocket {

struct MoERoute : Command {  // workspace: 8 bytes for every thread and expert
    int64_t rows, experts, top_k;
    const void *logits;  // [rows, experts]
    int64_t logits_stride;
    float *weights;  // [rows, top_k]
    int64_t *chosen;  // [rows, top_k]
    int32_t renormalize;
    int32_t dtype;
};

struct MoESort : Command {
    int64_t rows, experts, top_k;
    const int64_t *chosen;  // [rows, top_k]
    int64_t *tokens;        // [rows * top_k], in sorted order
    int64_t *offsets;       // [experts + 1]
    int64_t *slots;         // [rows, top_k]
};

struct MoECombine : Command {  // workspace: 8 bytes for every thread and choice of a token
    int64_t rows, width, top_k, height;
    const void *x;  // [height, width]
    int64_t x_stride;
    const int64_t *slots;  // [rows, top_k]
    const float *weights;  // [rows, top_k]
    void *y;               // [rows, width]
    int64_t y_stride;
    int32_t dtype;
};

}  // namespace opsocket
