// The rest of a decoder: norm, rotary embedding, gated activation, sums, sampling.
#pragma once
#include "commands.h"

namespace opsocket {

struct Add : Command {
    int64_t rows, width;
    const void *a;  // [rows, width]
    int64_t a_stride;
    const void *b;  // [rows, width]
    int64_t b_stride;
    void *y;  // [rows, width]
    int64_t y_stride;
    int32_t dtype;
};

}  // namespace opsocket
