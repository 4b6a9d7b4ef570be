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

}  // namespace opsocket
