// Codes, a byte each, and floats into panels.
#pragma once
#include "commands.h"

namespace opsocket {

// codes [rows, columns], contiguous: rows `first` to `first + rows` of the weight, `first` a multiple of PANEL; columns <=
// w.k, and columns beyond stand for nothing. What of w.data is no code of theirs stays as it is.
void pack_codes(const Panels &w, const uint8_t *codes, int64_t columns, int64_t first, int64_t rows);

// Floats [rows, k], contiguous, of `bytes` each: rows `first` to `first + rows` of panels of so many columns, [k][32], or for
// pairs [k / 2, rounded up][32][2].
void pack_floats(uint8_t *panels, const uint8_t *floats, int64_t k, int64_t bytes, bool pairs, int64_t first, int64_t rows);

}  // namespace opsocket
