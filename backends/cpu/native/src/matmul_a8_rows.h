// Rows of x as int8 codes: s = amax / 127 in f32, codes = clamp(round_half_even(x / s), -127, 127), zero where s is 0
// or x / s is not a number. Shared by the operator that quantizes activations and the products that do it on the way.
#pragma once
#include <type_traits>

#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// Columns of a row come in blocks of this many; what a block has beyond the last column is 0.
constexpr int64_t ROW_BLOCK = 64;

inline int64_t whole_blocks(int64_t k) { return (k + ROW_BLOCK - 1) / ROW_BLOCK * ROW_BLOCK; }

#if OPSOCKET_AVX2
inline int32_t largest_of_lanes(I v) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
}

// 32 codes by a scale and its inverse: x / s by a product and one correction, as in codes_of.
template <int32_t T> inline void codes_of_32(const void *x, int64_t first, F divisor, F inverse, int8_t *codes) {
    auto code = [&](int i) {
        const F v = load_t<T>(x, first + i), q = v * inverse;
        return (__m256i)round((F)_mm256_fmadd_ps(_mm256_fnmadd_ps((__m256)q, (__m256)divisor, (__m256)v), (__m256)inverse, (__m256)q));
    };
    const __m256i low = _mm256_packs_epi32(code(0), code(8)), high = _mm256_packs_epi32(code(16), code(24));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)codes, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
}
#endif

// The largest |x[i]|, i < n, n a multiple of 16. By their bits, so that a NaN is larger than all numbers.
inline float largest_magnitude(const float *x, int64_t n) {
    I most[2] = {};
    for (int64_t i = 0; i < n; i += 2 * W)
        for (int j = 0; j < 2 && i + j * W < n; j++) {
            I bits = as_int(load(x + i + j * W)) & 0x7fffffff;
            most[j] = bits > most[j] ? bits : most[j];
        }
    I both = most[0] > most[1] ? most[0] : most[1];
    int32_t bits;
#if OPSOCKET_AVX512
    bits = _mm512_reduce_max_epi32((__m512i)both);
#elif OPSOCKET_AVX2
    bits = largest_of_lanes(both);
#else
    bits = both[0];
    for (int i = 1; i < W; i++) bits = both[i] > bits ? both[i] : bits;
#endif
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// n codes, n a multiple of 16.
inline void codes_of(const float *x, int64_t n, float scale, int8_t *codes) {
    if (scale == 0) {
        std::memset(codes, 0, n > 0 ? size_t(n) : 0);
        return;
    }
#if OPSOCKET_AVX512
    const __m512 divisor = _mm512_set1_ps(scale);
    int64_t i = 0;
    // x / s by a product and one correction, which gives the quotient as it is rounded (Markstein 1990), unless 1 / s
    // or the remainder leaves the normal numbers. No x is larger than 127 s then, nor not a number.
    if (scale > 0x1p-90f && scale < 0x1p90f) {
        const __m512 inverse = _mm512_set1_ps(1.0f / scale);
        auto code = [&](int64_t at) {
            __m512 v = _mm512_loadu_ps(x + at), q = _mm512_mul_ps(v, inverse);
            return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_fnmadd_ps(q, divisor, v), inverse, q));
        };
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for (; i + 64 <= n; i += 64) {
            __m512i low = _mm512_packs_epi32(code(i), code(i + 16)), high = _mm512_packs_epi32(code(i + 32), code(i + 48));
            _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high)));
        }
        for (; i < n; i += 16) _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtsepi32_epi8(code(i)));
    }
    const __m512i lowest = _mm512_set1_epi32(-127);
    for (; i < n; i += 16) {
        __m512 q = _mm512_div_ps(_mm512_loadu_ps(x + i), divisor);
        __m512i code = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(q, q, _CMP_ORD_Q), q);
        _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtsepi32_epi8(_mm512_max_epi32(code, lowest)));
    }
#else
    int64_t i = 0;
#if OPSOCKET_AVX2
    if (scale > 0x1p-90f && scale < 0x1p90f)
        for (; i + 32 <= n; i += 32) codes_of_32<F32>(x, i, set(scale), set(1.0f / scale), codes + i);
#endif
    for (; i < n; i += W) {
        F q = load(x + i) / scale;
        q = q == q ? q : set(0.0f);
        B code = __builtin_convertvector(round(min(max(q, set(-127.0f)), set(127.0f))), B);
        std::memcpy(codes + i, &code, sizeof code);
    }
#endif
}

#if OPSOCKET_AVX512
// The bits of the largest magnitudes of 4 groups of 32 columns from x[first] on; of 2 where there are no more, and those
// twice. All of a 128-bit quarter, and of four quarters, by maxima of halves that lie beside each other.
template <int GROUPS, int32_t T> inline __m128i largest_of_groups(const void *x, int64_t first) {
    __m512i most[4], all;
    if constexpr (T == BF16) {
        for (int g = 0; g < 4; g++)
            most[g] = _mm512_and_si512(load_as<__m512i>(static_cast<const uint16_t *>(x) + first + 32 * (g % GROUPS)),
                                       _mm512_set1_epi16(0x7fff));
        auto halves = [](__m512i a, __m512i b) {
            return _mm512_max_epu16(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
        };
        const __m512i low = halves(most[0], most[1]), high = halves(most[2], most[3]);
        all = _mm512_max_epu16(_mm512_shuffle_i64x2(low, high, 0x88), _mm512_shuffle_i64x2(low, high, 0xdd));
        all = _mm512_max_epu16(all, _mm512_shuffle_epi32(all, _MM_PERM_BADC));
        all = _mm512_max_epu16(all, _mm512_shuffle_epi32(all, _MM_PERM_CDAB));
        all = _mm512_and_si512(_mm512_max_epu16(all, _mm512_slli_epi32(all, 16)), _mm512_set1_epi32(int(0xffff0000)));
        return _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, all));
    } else {
        for (int g = 0; g < 4; g++) {
            const int64_t at = first + 32 * (g % GROUPS);
            const I one = as_int(load_t<T>(x, at)) & 0x7fffffff, other = as_int(load_t<T>(x, at + 16)) & 0x7fffffff;
            most[g] = _mm512_max_epi32((__m512i)one, (__m512i)other);
        }
        auto pairs = [](__m512i a, __m512i b) {
            return _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        };
        const __m512i low = pairs(most[0], most[1]), high = pairs(most[2], most[3]);
        all = _mm512_max_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
        const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
        return _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    }
}
#endif

// A row's codes by its scales, group by group.
template <int32_t T>
inline void codes_one_by_one(const void *x, int64_t first, int64_t n, const float *scales, int8_t *codes) {
    for (int64_t i = 0; i < n; i += 32) {
        alignas(64) float numbers[32];
        for (int j = 0; j < 32; j += W) store(numbers + j, load_t<T>(x, first + i + j));
        codes_of(numbers, 32, scales[i / 32], codes + i);
    }
}

#if OPSOCKET_AVX512
// A row's scales, and what its numbers are multiplied with, for each 32 of n columns of x [first, first + n), n a multiple
// of ROW_BLOCK; inverses: room for 16 beyond. Whether some scale leaves the numbers that codes_of may multiply with.
template <int32_t T> inline bool scales_by_32(const void *x, int64_t first, int64_t n, float *scales, float *inverses) {
    for (int64_t i = 0; i < n; i += 128) {
        const __m128i bits = i + 128 <= n ? largest_of_groups<4, T>(x, first + i) : largest_of_groups<2, T>(x, first + i);
        _mm_storeu_si128((__m128i *)(inverses + i / 32), bits);
    }
    unsigned extreme = 0;
    for (int64_t g = 0; g < n / 32; g += 16) {
        const __mmask16 here = __mmask16((1u << std::min<int64_t>(16, n / 32 - g)) - 1);
        const __m512 scale = _mm512_div_ps(_mm512_maskz_loadu_ps(here, inverses + g), _mm512_set1_ps(127.0f));
        const __mmask16 some = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        _mm512_mask_storeu_ps(scales + g, here, scale);
        // Of a group of zeros all factors are 0.
        _mm512_storeu_ps(inverses + g, _mm512_maskz_div_ps(some, _mm512_set1_ps(1.0f), scale));
        extreme |= _mm512_mask_cmp_ps_mask(some, scale, _mm512_set1_ps(0x1p-90f), _CMP_NGT_UQ) |
                   _mm512_mask_cmp_ps_mask(some, scale, _mm512_set1_ps(0x1p90f), _CMP_NLT_UQ);
    }
    return extreme;
}

// That row's codes.
template <int32_t T>
inline void codes_by_32(const void *x, int64_t first, int64_t n, const float *scales, const float *inverses, bool extreme,
                        int8_t *codes) {
    if (extreme) return codes_one_by_one<T>(x, first, n, scales, codes);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    auto of_group = [&](int64_t i) {
        const __m512 divisor = _mm512_set1_ps(scales[i / 32]), inverse = _mm512_set1_ps(inverses[i / 32]);
        auto code = [&](F given) {
            const __m512 number = (__m512)given, q = _mm512_mul_ps(number, inverse);
            return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_fnmadd_ps(q, divisor, number), inverse, q));
        };
        return _mm512_packs_epi32(code(load_t<T>(x, first + i)), code(load_t<T>(x, first + i + 16)));
    };
    for (int64_t i = 0; i < n; i += 64)
        _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(of_group(i), of_group(i + 32))));
}
#elif OPSOCKET_AVX2
template <int32_t T> inline bool scales_by_32(const void *x, int64_t first, int64_t n, float *scales, float *inverses) {
    for (int64_t i = 0; i < n; i += 32) {
        I most = as_int(load_t<T>(x, first + i)) & 0x7fffffff;
        for (int j = W; j < 32; j += W) most = max(most, as_int(load_t<T>(x, first + i + j)) & 0x7fffffff);
        const int32_t bits = largest_of_lanes(most);
        std::memcpy(inverses + i / 32, &bits, 4);
    }
    I extreme{};
    for (int64_t g = 0; g < n / 32; g += W) {
        const I here = I{0, 1, 2, 3, 4, 5, 6, 7} < int32_t(n / 32 - g);
        const F scale = as_float(as_int(load(inverses + g)) & here) / 127.0f;
        const I some = ~(I)(scale == 0.0f);
        // Of a group of zeros all factors are 0.
        store(inverses + g, as_float(as_int(1.0f / scale) & some));
        extreme |= some & ~((I)(scale > 0x1p-90f) & (I)(scale < 0x1p90f));
        if (g + W <= n / 32) store(scales + g, scale);
        else std::memcpy(scales + g, &scale, size_t(n / 32 - g) * 4);
    }
    return true_lanes(extreme) != 0;
}
template <int32_t T>
inline void codes_by_32(const void *x, int64_t first, int64_t n, const float *scales, const float *inverses, bool extreme,
                        int8_t *codes) {
    if (extreme) return codes_one_by_one<T>(x, first, n, scales, codes);
    for (int64_t i = 0; i < n; i += 32)
        codes_of_32<T>(x, first + i, set(scales[i / 32]), set(inverses[i / 32]), codes + i);
}
#else
template <int32_t T> inline bool scales_by_32(const void *x, int64_t first, int64_t n, float *scales, float *) {
    for (int64_t i = 0; i < n; i += 32) {
        alignas(64) float numbers[32];
        for (int j = 0; j < 32; j += W) store(numbers + j, load_t<T>(x, first + i + j));
        scales[i / 32] = largest_magnitude(numbers, 32) / 127.0f;
    }
    return false;
}
template <int32_t T>
inline void codes_by_32(const void *x, int64_t first, int64_t n, const float *scales, const float *, bool, int8_t *codes) {
    codes_one_by_one<T>(x, first, n, scales, codes);
}
#endif

// sums[j]: of codes GROUP j .. GROUP j + GROUP - 1.
template <int GROUP> inline void sums_one_by_one(const int8_t *codes, int64_t n, int32_t *sums) {
    for (int64_t i = 0; i < n; i += GROUP) {
        int32_t s = 0;
        for (int j = 0; j < GROUP; j++) s += codes[i + j];
        sums[i / GROUP] = s;
    }
}

// sums[j]: of codes 16 j .. 16 j + 15; n a multiple of ROW_BLOCK.
inline void sums_of_16(const int8_t *codes, int64_t n, int32_t *sums) {
#if OPSOCKET_AVX512
    const __m512i sign = _mm512_set1_epi8(-128);
    for (int64_t i = 0; i < n; i += 64) {
        __m512i v = _mm512_sad_epu8(_mm512_xor_si512(_mm512_loadu_si512(codes + i), sign), _mm512_setzero_si512());
        v = _mm512_add_epi64(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC));
        __m128i four = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, v));
        _mm_storeu_si128((__m128i *)(sums + i / 16), _mm_sub_epi32(four, _mm_set1_epi32(16 * 128)));
    }
#elif OPSOCKET_AVX2
    const __m256i sign = _mm256_set1_epi8(-128), order = _mm256_setr_epi32(0, 4, 2, 6, 0, 4, 2, 6);
    auto by_eight = [&](int64_t i) {
        return _mm256_sad_epu8(_mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(codes + i)), sign), _mm256_setzero_si256());
    };
    for (int64_t i = 0; i < n; i += 64) {
        const __m256i a = by_eight(i), b = by_eight(i + 32);
        const __m256i v = _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        const __m128i four = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(v, order));
        _mm_storeu_si128((__m128i *)(sums + i / 16), _mm_sub_epi32(four, _mm_set1_epi32(16 * 128)));
    }
#else
    sums_one_by_one<16>(codes, n, sums);
#endif
}

// sums[j]: of codes 32 j .. 32 j + 31; n a multiple of ROW_BLOCK, and room for two sums more.
inline void sums_of_32(const int8_t *codes, int64_t n, int32_t *sums) {
#if OPSOCKET_AVX512
    const __m512i ones = _mm512_set1_epi8(1);
    auto by_four = [&](int64_t i) { return _mm512_dpbusd_epi32(__m512i{}, ones, _mm512_loadu_si512(codes + i)); };
    for (int64_t i = 0; i < n; i += 128) {
        const __m512i a = by_four(i), b = i + 64 < n ? by_four(i + 64) : a;
        __m512i v = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        v = _mm512_add_epi32(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC));
        v = _mm512_add_epi32(v, _mm512_shuffle_i32x4(v, v, 0xb1));
        const __m128i first = _mm512_castsi512_si128(v), second = _mm512_extracti32x4_epi32(v, 2);
        _mm_storeu_si128((__m128i *)(sums + i / 32), _mm_unpacklo_epi32(first, second));
    }
#elif OPSOCKET_AVX2
    auto by_four = [&](int64_t i) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)(codes + i)));
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    };
    for (int64_t i = 0; i < n; i += 128) {
        const __m256i a = _mm256_hadd_epi32(by_four(i), by_four(i + 32));
        const __m256i b = i + 64 < n ? _mm256_hadd_epi32(by_four(i + 64), by_four(i + 96)) : a;
        const __m256i v = _mm256_hadd_epi32(a, b);
        _mm_storeu_si128((__m128i *)(sums + i / 32), _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
    }
#else
    sums_one_by_one<32>(codes, n, sums);
#endif
}

// x[row, permutation[i]] (or x[row, i]) as f32, zeros up to a whole block; where x is that already, x itself.
inline const float *as_f32_row(const void *x, int64_t first, int64_t k, int32_t dtype, const int64_t *permutation,
                               float *buffer) {
    if (!permutation && dtype == F32 && k % ROW_BLOCK == 0) return static_cast<const float *>(x) + first;
    int64_t i = 0;
    if (permutation)
        for (; i < k; i++) buffer[i] = load_one(x, first + permutation[i], dtype);
    else if (dtype == F32)
        std::memcpy(buffer, static_cast<const float *>(x) + first, size_t(i = k) * 4);
    else if (dtype == F16)
        for (; i + W <= k; i += W) store(buffer + i, load_t<F16>(x, first + i));
    else
        for (; i + W <= k; i += W) store(buffer + i, load_t<BF16>(x, first + i));
    for (; i < k; i++) buffer[i] = load_one(x, first + i, dtype);
    for (; i < whole_blocks(k); i++) buffer[i] = 0;
    return buffer;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
