// Elementary functions beside `exp` (simd.h), each within 2 units in the last place ("exact" in docs/tolerance.md);
// tests/test_functions.cpp holds them to it.
#pragma once
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// tanh x for all x; NaN stays NaN. Below 0.6 an odd polynomial, fitted to the least largest relative error (4e-9), as
// 1 - 2 / (e^2x + 1) cancels there; above 9.02 f32 has nothing left between it and 1.
inline F tanh(F x) {
    F size = abs(x), square = x * x;
    F p = set(-5.8951583e-3f);
    p = p * square + 2.0795971e-2f;
    p = p * square - 5.3783830e-2f;
    p = p * square + 1.33319244e-1f;
    p = p * square - 3.33332986e-1f;
    F small = x * square * p + x;
    F large = 1.0f - 2.0f / (exp(min(size, set(10.0f)) * 2.0f) + 1.0f);
    I sign = as_int(x) & I(U{} + 0x80000000u);
    F y = size < 0.6f ? small : as_float(as_int(large) | sign);
    return x == x ? y : x;
}

// 1 / (1 + e^-x), which is 0 below -88.73, where e^-x is infinite.
inline F sigmoid(F x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
