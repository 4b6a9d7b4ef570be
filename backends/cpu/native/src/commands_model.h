// The rest of a decoder: norm, rotary embedding, gated activation, sums, rows, merging, sampling.
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

struct SiluMul : Command {
    int64_t rows, width;
    const void *gate;  // [rows, width]
    int64_t gate_stride;
    const void *up;  // [rows, width]
    int64_t up_stride;
    void *y;  // [rows, width]
    int64_t y_stride;
    int32_t dtype;
};

struct RMSNorm : Command {
    int64_t rows, heads, width;  // heads: 1 where the norm is over whole rows
    const void *x;               // [rows, heads, width]
    int64_t x_stride;            // from row to row; heads are dense
    const void *residual;        // [rows, width], or null
    int64_t residual_stride;
    void *sum;  // [rows, width], dense: x + residual; null without residual
    void *y;    // [rows, heads, width]
    int64_t y_stride;
    const float *weight;  // [width]
    double eps;
    int32_t dtype;
};

// Cosines and sines by position, computed when a position is first met and kept by the plan. turns: [positions][2][n],
// cosines then sines; n is half the rotary dimension, or, interleaved, all of it: every cosine twice, every sine as
// (-sin, sin). state: [positions], 0 where nothing is known, 1 while a thread writes, 2 where the row holds.
struct RopeTable {
    int64_t positions;  // that the table has rows for; any other position is computed when it is met
    float *turns;
    uint8_t *state;
    float *factors;  // [half] those that the table was made with; null where there are none
};

struct Rope : Command {
    int64_t rows, heads, head_dim, rotary_dim;
    const void *x;  // [rows, heads, head_dim]
    int64_t x_stride;
    void *y;  // [rows, heads, head_dim]; may be x
    int64_t y_stride;
    const int64_t *positions;   // [rows]
    const double *frequencies;  // [rotary_dim / 2] radians per position
    const float *factors;       // [rotary_dim / 2] that divide the frequencies, or null
    RopeTable *table;
    double magnitude;  // on cosines and sines
    int32_t interleaved;
    int32_t dtype;
};

struct TakeRows : Command {
    int64_t rows, width, height;
    const void *x;  // [height, width]
    int64_t x_stride;
    const int64_t *ids;  // [rows]
    void *y;             // [rows, width]
    int64_t y_stride;
    int32_t dtype;
};

struct Argmax : Command {  // workspace: 16 bytes for every row and thread, where there are fewer rows than threads
    int64_t rows, width;
    const void *x;  // [rows, width]
    int64_t x_stride;
    int64_t *y;  // [rows]
    int32_t dtype;
};

struct MergeStates : Command {
    int64_t parts, rows, heads, head_dim;
    const void *outs;  // [parts, rows, heads, head_dim], heads dense
    int64_t outs_part_stride, outs_row_stride;
    const float *lses;  // [parts, rows, heads], rows dense
    int64_t lses_part_stride;
    void *y;  // [rows, heads, head_dim]
    int64_t y_stride;
    float *lse;  // [rows, heads]
    int32_t in_dtype, out_dtype;
};

struct SampleRows {  // the batch: one entry for each row of logits
    const float *temperature, *top_p, *min_p, *uniform, *repetition, *presence, *frequency;
    const int64_t *top_k;
    const int64_t *history_start;  // [rows + 1]
    const int64_t *history_ids;
    const float *history_counts;
};

struct Sample : Command {  // workspace: for every thread 20 bytes for every logit and 192, in whole lines
    int64_t rows, width;
    const void *logits;  // [rows, width]
    int64_t logits_stride;
    const SampleRows *batch;
    int64_t *y;  // [rows]
    int32_t dtype;
};

}  // namespace opsocket
