// Small floats as f32, exactly, subnormal numbers included: by integers, and a table where a vector holds it.
#pragma once
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// e4m3fn in 0 .. 255: four exponent bits that count from 7, three fraction bits; all ones of these is NaN.
inline F e4m3fn(I code) {
    const I size = code & 0x7f, subnormal = size < 8;
    // A subnormal number is what its fraction has with exponent 1, less the 2^-6 of its first bit, which it lacks.
    F value = as_float(((size | (subnormal & 8)) << 20) + 0x3c000000) - as_float(subnormal & 0x3c800000);
    value = as_float(as_int(value) | (code & 0x80) << 24);
    return size == 0x7f ? set(__builtin_nanf("")) : value;
}

// Twice an e2m1 in the lowest four bits of each element: sign, two exponent bits, one fraction bit.
inline F twice_e2m1(I code) {
#if OPSOCKET_AVX512
    const F table = {0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12};
    return (F)_mm512_permutexvar_ps((__m512i)code, (__m512)table);
#elif OPSOCKET_AVX2
    const F table = {0, 1, 2, 3, 4, 6, 8, 12};
    const F size = (F)_mm256_permutevar8x32_ps((__m256)table, (__m256i)code);
    return as_float(as_int(size) | (code & 8) << 28);
#else
    // From 4 on steps are twice as wide, from 6 on four times.
    const I size = code & 7, above = size - 4, far = size - 6;
    const F value = convert(size + (above & ~(above >> 31)) + 2 * (far & ~(far >> 31)));
    return as_float(as_int(value) | (code & 8) << 28);
#endif
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
