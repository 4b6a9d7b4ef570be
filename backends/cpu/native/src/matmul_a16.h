// What all ways of multiplying rows of floats share.
#pragma once
#include <algorithm>
#include <utility>

#include "panel_codes.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int V = PANEL / W;                 // vectors that hold one k of a panel
constexpr int64_t TILE_K = W == 16 ? 192 : 128;  // k of a widened piece: 24 or 16 KB of a first-level cache's 48 or 32
constexpr int MOST_IN_REGISTERS = W == 16 ? 8 : W == 8 ? 2 : 1;  // rows for which weights are widened in registers

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
