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

// Rows of x as int8 codes with one scale each.
struct QuantizeActivation : Command {
    int64_t rows, k;
    const void *x;  // [rows, k]
    int64_t x_stride;
    int8_t *codes;  // [rows, k]
    float *scale;   // [rows]
    int32_t x_dtype;
};

struct PanelWeight {
    Panels panels;               // of floats: data alone
    const int64_t *permutation;  // [k] or null: column j of the codes meets x[permutation[j]]
};

// y [rows, n] = x [rows, k] W^T + bias with x as int8 codes. Rows offsets[e] to offsets[e + 1] meet weights[e]; without
// offsets all rows meet the only weight. workspace: of some quantized rows, those of one pass.
struct MatmulA8 : Command {
    int64_t rows, n, k, experts;
    const void *x;  // [rows, k]
    int64_t x_stride;
    const PanelWeight *weights;  // [experts]
    const int64_t *offsets;      // [experts + 1] or null
    const float *bias;           // [experts, n] or null
    void *y;                     // [rows, n]
    int64_t y_stride;
    int32_t x_dtype, y_dtype;
    int32_t x_group;  // columns of x that share a scale: 32, or 0 for a whole row
};

// The same with x as it is. workspace: rows times 4 bytes for each column, k rounded up to 64, where x is not f32 or any
// weight's columns are permuted or padded.
struct MatmulA16 : Command {
    int64_t rows, n, k, experts;
    const void *x;  // [rows, k]
    int64_t x_stride;
    const PanelWeight *weights;  // [experts]
    const int64_t *offsets;      // [experts + 1] or null
    const float *bias;           // [experts, n] or null
    void *y;                     // [rows, n]
    int64_t y_stride;
    int32_t x_dtype, y_dtype;
    int32_t float_dtype;  // of weights of floats; -1: codes
    int32_t bf16_weights;  // whether codes may be rounded to bf16 once they are dequantized
};

}  // namespace opsocket
