// Matrix products with packed weights, their packing, and the lookup of rows.
#pragma once
#include "commands.h"
#include "panel.h"

namespace opsocket {

// y[t] = row ids[t] of the table, in its original order of columns.
struct Embedding : Command {
    Panels weight;
    int64_t rows, k;
    const int64_t *ids;          // [rows]
    const int64_t *permutation;  // [k] or null: column j of the codes is column permutation[j] of the table
    void *y;                     // [rows, k]
    int64_t y_stride;
    int32_t dtype;
    int32_t float_dtype;  // of a table of floats; -1: codes
};

// y [rows, n] = x [rows, k] W^T + bias with x as it is. workspace: rows * weight.k * 4 where x is not f32, is permuted or
// padded.
struct MatmulA16 : Command {
    Panels weight;  // of floats: data alone
    int64_t rows, n, k;
    const void *x;  // [rows, k]
    int64_t x_stride;
    const int64_t *permutation;  // [k] or null: column j of the weight's codes meets x[permutation[j]]
    const float *bias;           // [n] or null
    void *y;                     // [rows, n]
    int64_t y_stride;
    int32_t x_dtype, y_dtype;
    int32_t float_dtype;  // of a weight of floats; -1: codes
};

}  // namespace opsocket
