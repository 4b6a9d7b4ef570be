// Small floats as f32, exactly, subnormal numbers included: by integers, and a table where a vector holds it.
#pragma once
#include <bit>

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

#if OPSOCKET_AVX2
// Bytes of bf16 by those of an e4m3fn, s eeee mmm, of which the upper four, s eee, decide the upper byte of the bf16, and the
// lower four, e mmm, are the upper half of its lower byte: as exponents of bf16 are larger by an even number. Where eee is 0
// the code is a fixed point number, which the lower four decide.
struct E4M3FNTables {
    alignas(32) uint8_t upper[32] = {}, fixed_upper[32] = {}, fixed_lower[32] = {}, lower[32] = {};
    alignas(32) uint8_t size[32] = {}, four[32] = {}, below_fixed[32] = {}, above_fixed[32] = {}, nan_upper[32] = {};

    constexpr E4M3FNTables() {
        for (int i = 0; i < 32; i++) {
            const int nibble = i % 16, eee = nibble & 7;
            const uint32_t fixed = std::bit_cast<uint32_t>(float(nibble) * 0x1p-9f);
            upper[i] = uint8_t((nibble & 8) << 4 | (eee ? 60 + eee : 0)), lower[i] = uint8_t(nibble << 4);
            fixed_upper[i] = uint8_t(fixed >> 24), fixed_lower[i] = uint8_t(fixed >> 16);
            size[i] = 0x7f, four[i] = 0x0f, below_fixed[i] = 0x70, above_fixed[i] = 0x10, nan_upper[i] = 0x3c;
        }
    }
};
inline constexpr E4M3FNTables E4M3FN_TABLES;

// The upper and the lower bytes of the bf16 that 32 e4m3fn are.
inline void bf16_bytes(I codes, __m256i &upper, __m256i &lower) {
    const E4M3FNTables *tables = &E4M3FN_TABLES;
    asm volatile("" : "+r"(tables));  // registers must not hold them while sums are in memory
    auto of = [](const uint8_t *bytes) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(bytes)); };
    const __m256i size = _mm256_and_si256((__m256i)codes, of(tables->size));
    const __m256i four = _mm256_and_si256(_mm256_srli_epi32((__m256i)codes, 4), of(tables->four));
    // A permute makes 0 of what its index's uppermost bit is set for: that of other codes than fixed point numbers, or of these.
    const __m256i fixed = _mm256_add_epi8(size, of(tables->below_fixed)), other = _mm256_sub_epi8(size, of(tables->above_fixed));
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi8(size, of(tables->size)), of(tables->nan_upper));
    upper = _mm256_or_si256(_mm256_shuffle_epi8(of(tables->upper), four),
                            _mm256_or_si256(_mm256_shuffle_epi8(of(tables->fixed_upper), fixed), nan));
    lower = _mm256_or_si256(_mm256_shuffle_epi8(of(tables->lower), other), _mm256_shuffle_epi8(of(tables->fixed_lower), fixed));
}
#endif

// Of the four e4m3fn in each element: values[b] times E4M3FN_UNIT those in byte b. At 512 bits by way of f16, whose conversion
// knows subnormal numbers: one with the same bits, seven higher but for the sign, is 2^-8 of it. 21 instructions for 64 of them
// that e4m3fn has about 48 for.
constexpr float E4M3FN_UNIT = W == 16 ? 256.0f : 1.0f;
#if OPSOCKET_AVX2
inline void four_e4m3fn(I codes, F (&values)[4]) {
    // The first two bytes of each element, to every other byte: a permute makes 0 of 255.
    alignas(16) static constexpr uint8_t FIRST_TWO[16] = {0, 255, 1, 255, 4, 255, 5, 255, 8, 255, 9, 255, 12, 255, 13, 255};
    __m256i upper, lower;
    bf16_bytes(codes, upper, lower);
    for (int pair = 0; pair < 2; pair++) {  // of bf16, in each element
        const __m256i from = (__m256i)(repeated(FIRST_TWO) + pair * 0x00020002);
        const I two = (I)_mm256_shuffle_epi8(lower, from) | (I)_mm256_shuffle_epi8(upper, from) << 8;
        values[2 * pair] = as_float(two << 16), values[2 * pair + 1] = as_float(two & int32_t(0xffff0000));
    }
}
#else
inline void four_e4m3fn(I codes, F (&values)[4]) {
#if OPSOCKET_AVX512
    const __m512i given = (__m512i)codes, sizes = _mm512_and_si512(given, _mm512_set1_epi8(0x7f));
    if (_mm512_cmpeq_epi8_mask(sizes, _mm512_set1_epi8(0x7f)) == 0) [[likely]] {
        alignas(64) static constexpr uint8_t BY_BYTE[64] = {
            0, 4, 8,  12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 1, 5, 9,  13, 17, 21,
            25, 29, 33, 37, 41, 45, 49, 53, 57, 61, 2,  6,  10, 14, 18, 22, 26, 30, 34, 38, 42, 46,
            50, 54, 58, 62, 3,  7,  11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59, 63};
        const __m512i by_byte = _mm512_permutexvar_epi8(_mm512_load_si512(BY_BYTE), given);
        auto halves = [](__m256i bytes, F &first, F &second) {
            const __m512i words = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7),
                                                   _mm512_set1_epi16(int16_t(0xbfff)));
            first = (F)_mm512_cvtph_ps(_mm512_castsi512_si256(words));
            second = (F)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
        };
        halves(_mm512_castsi512_si256(by_byte), values[0], values[1]);
        halves(_mm512_extracti64x4_epi64(by_byte, 1), values[2], values[3]);
        return;
    }
#endif
    for (int b = 0; b < 4; b++) values[b] = e4m3fn((codes >> (8 * b)) & 0xff) * (1 / E4M3FN_UNIT);
}
#endif

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
