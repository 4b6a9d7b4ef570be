// Elementary functions beside `exp` (simd.h), each within 2 units in the last place ("exact" in docs/tolerance.md);
// tests/test_functions.cpp holds them to it.
#pragma once
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// 2^x; 0 below -126, so that nothing underflows (hidden keys least of all); infinity from 128 on, NaN stays NaN. 2^n 2^f
// with f in [0, 1]: 1 + f times a polynomial that was fitted to the least largest relative error (2e-9).
inline F exp2(F x) {
#if OPSOCKET_AVX512
    const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    const F f = (F)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const F whole = set(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
    const I kept = ~(I)(x < -126.0f);
    const F clamped = min(set(128.0f), as_float(as_int(x) & kept));
    const F shifted = clamped - 0.5f + whole, f = clamped - (shifted - whole);
#endif
    F p = set(0.00021612914861179888f);
    p = p * f + 0.0012467846972867846f;
    p = p * f + 0.009675451554358006f;
    p = p * f + 0.055485282093286514f;
    p = p * f + 0.2402293086051941f;
    p = p * f + 0.6931470632553101f;
    p = p * f + 1.0f;
#if OPSOCKET_AVX512
    return (F)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)x);
#else
    const F y = p * as_float((as_int(shifted) - as_int(whole) + 127) << 23);
    return as_float(as_int(y) & kept);
#endif
}
constexpr float LOG2_E = 1.44269504f;

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
