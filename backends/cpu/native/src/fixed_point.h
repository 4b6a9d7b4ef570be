// Integers as signed digits of base 256, four at a time: what int8 products take.
#pragma once
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// 4 digits of each of W integers: in each 128-bit lane the first digits of its four, lowest first, the second, the third,
// the fourth.
inline I digits_of_integers(I integers) {
    constexpr int32_t MIDDLE = int32_t(0x80808080);  // makes digits of 0 to 255 of those of -128 to 127
    alignas(16) static constexpr uint8_t BY_DIGIT[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return look_up(I(U(integers) + uint32_t(MIDDLE)) ^ MIDDLE, repeated(BY_DIGIT));
}

// The first four lanes: of four, eight or sixteen, those of all fours together.
inline I sum_of_fours(I v) {
#if OPSOCKET_AVX512
    v += (I)_mm512_shuffle_i64x2((__m512i)v, (__m512i)v, 0x4e);
    v += (I)_mm512_shuffle_i64x2((__m512i)v, (__m512i)v, 0xb1);
#elif OPSOCKET_AVX2
    v += (I)_mm256_permute4x64_epi64((__m256i)v, 0x4e);
#endif
    return v;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
