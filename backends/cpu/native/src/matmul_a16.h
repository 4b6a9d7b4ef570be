// What all ways of multiplying rows of floats share.
#pragma once
#include <algorithm>
#include <utility>

#include "panel_products.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int64_t TILE_K = W == 16 ? 192 : 128;  // k of a widened piece: 24 or 16 KB of a first-level cache's 48 or 32
constexpr int MOST_IN_REGISTERS = W == 16 ? 8 : W == 8 ? 6 : 1;  // rows for which weights are widened in registers
constexpr int MOST_OF_CODES = W == 8 ? 12 : MOST_IN_REGISTERS;  // rows for which codes are, in blocks of so many
// Vectors of a panel that these rows meet together: the others after them, where sums leave no registers for all.
constexpr int together(int rows) { return W < 16 && rows > 2 ? PART : VECTORS; }

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
