// What all ways of multiplying rows of floats share.
#pragma once
#include <algorithm>
#include <utility>

#include "commands_matmul.h"
#include "panel_products.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int64_t TILE_K = W == 16 ? 192 : 128;  // k of a widened piece: 24 or 16 KB of a first-level cache's 48 or 32
constexpr int MOST_IN_REGISTERS = W == 16 ? 8 : W == 8 ? 6 : 1;  // rows for which weights are widened in registers
constexpr int MOST_OF_CODES = W == 8 ? 12 : MOST_IN_REGISTERS;  // rows for which codes are, in blocks of so many
// Vectors of a panel that these rows meet together: the others after them, where sums leave no registers for all.
constexpr int together(int rows) { return W < 16 && rows > 2 ? PART : VECTORS; }

// visit(expert, first, count) for each weight that rows meet, of the first `rows` of x.
template <class Visit> inline void each_weight(const MatmulA16 &c, int64_t rows, const Visit &visit) {
    if (!c.offsets) return visit(int64_t(0), int64_t(0), rows);
    for (int64_t e = 0; e < c.experts; e++) {
        const int64_t first = std::max<int64_t>(0, c.offsets[e]), last = std::min(rows, c.offsets[e + 1]);
        if (first < last) visit(e, first, last - first);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
