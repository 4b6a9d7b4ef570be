// The three instructions of AVX512_BF16 that kernels use, in AVX512: so that a processor without them can test level
// avx512_bf16 (check.py --emulate-bf16). Rounds as they do; subnormals, which they take for zeros, are kept.
#pragma once
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

inline __m512 emulated_dpbf16(__m512 sum, __m512bh a, __m512bh b) {
    const __m512i x = (__m512i)a, y = (__m512i)b, upper = _mm512_set1_epi32(int(0xffff0000));
    sum = _mm512_fmadd_ps((__m512)_mm512_and_si512(x, upper), (__m512)_mm512_and_si512(y, upper), sum);
    return _mm512_fmadd_ps((__m512)_mm512_slli_epi32(x, 16), (__m512)_mm512_slli_epi32(y, 16), sum);
}

inline __m256bh emulated_cvtneps(__m512 x) {
    __m256bh rounded;
    store_bf16(&rounded, (F)x);
    return rounded;
}

inline __m512bh emulated_cvtne2ps(__m512 high, __m512 low) {
    __m512bh rounded;
    store_bf16(&rounded, (F)low);
    store_bf16(reinterpret_cast<uint16_t *>(&rounded) + W, (F)high);
    return rounded;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket

#define _mm512_dpbf16_ps emulated_dpbf16
#define _mm512_cvtneps_pbh emulated_cvtneps
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps
