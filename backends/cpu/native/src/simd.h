// Vectors of one level's width: GCC's vector extension, with intrinsics where an instruction matters that the compiler
// would not find. W floats or 32-bit integers make one vector: 16, 8, or 4 of them.
//
// Arithmetic is written with + - * /; the compiler contracts a * b + c to one rounding where the level has FMA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#define OPSOCKET_AVX512 1
#endif
#if defined(__AVX512BF16__) || OPSOCKET_EMULATED_BF16
#define OPSOCKET_AVX512_BF16 1
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && OPSOCKET_AVX512
#define OPSOCKET_AMX 1
#endif
#if defined(__AVX2__) && !OPSOCKET_AVX512
#define OPSOCKET_AVX2 1
#endif
#if defined(__AVXVNNI__) && OPSOCKET_AVX2
#define OPSOCKET_AVX_VNNI 1
#endif
#if OPSOCKET_AVX512 || OPSOCKET_AVX2
#include <immintrin.h>
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define OPSOCKET_NEON 1
#include <arm_neon.h>
#endif

#include "commands.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

#if OPSOCKET_AVX512
constexpr int W = 16;
#elif OPSOCKET_AVX2
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef int16_t H __attribute__((vector_size(W * 2)));
typedef int8_t B __attribute__((vector_size(W)));
typedef uint8_t UB __attribute__((vector_size(W)));

// x in every lane: not as F{} + x, which would be an addition, since 0 + -0 is no -0.
inline F set(float x) {
#if OPSOCKET_AVX512
    return (F)_mm512_set1_ps(x);
#elif OPSOCKET_AVX2
    return (F)_mm256_set1_ps(x);
#else
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return (F)(U{} + bits);
#endif
}
inline I set(int32_t x) { return I{} + x; }

template <class V> inline V load_as(const void *p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline F load(const float *p) { return load_as<F>(p); }
inline void store(float *p, F v) { __builtin_memcpy(p, &v, sizeof v); }

inline F as_float(I v) { return (F)v; }
inline I as_int(F v) { return (I)v; }
inline F convert(I v) { return __builtin_convertvector(v, F); }

// b where either is NaN, as x86 has it; the compiler makes three instructions of the general form.
#if OPSOCKET_AVX512
inline F min(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
inline F max(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }
#elif OPSOCKET_AVX2
inline F min(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
inline F max(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
#else
inline F min(F a, F b) { return a < b ? a : b; }
inline F max(F a, F b) { return a > b ? a : b; }
#endif
inline F abs(F a) { return as_float(as_int(a) & 0x7fffffff); }
inline I max(I a, I b) { return a > b ? a : b; }
inline U min(U a, U b) { return a < b ? a : b; }

// The lanes that a comparison is true of, a bit each.
inline uint32_t true_lanes(I comparison) {
#if OPSOCKET_AVX512
    return _mm512_movepi32_mask((__m512i)comparison);
#elif OPSOCKET_AVX2
    return uint32_t(_mm256_movemask_ps((__m256)comparison));
#else
    uint32_t bits = 0;
    for (int i = 0; i < W; i++) bits |= uint32_t(comparison[i] & 1) << i;
    return bits;
#endif
}

inline float sum(F v) {
    float s = 0;
#if OPSOCKET_AVX512
    s = _mm512_reduce_add_ps((__m512)v);
#else
    for (int i = 0; i < W; i++) s += v[i];
#endif
    return s;
}
inline float largest(F v) {
#if OPSOCKET_AVX512
    return _mm512_reduce_max_ps((__m512)v);
#else
    float m = v[0];
    for (int i = 1; i < W; i++) m = v[i] > m ? v[i] : m;
    return m;
#endif
}
// Whether a lane is larger than y; NaN is not.
inline bool any_above(F v, float y) {
#if OPSOCKET_AVX512
    return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(y), _CMP_GT_OQ) != 0;
#elif OPSOCKET_AVX2
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(y), _CMP_GT_OQ)) != 0;
#else
    bool any = false;
    for (int i = 0; i < W; i++) any |= v[i] > y;
    return any;
#endif
}
inline int32_t sum(I v) {
#if OPSOCKET_AVX512
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
#endif
}

// Round to the nearest integer, ties to even.
inline I round(F v) {
#if OPSOCKET_AVX512
    return (I)_mm512_cvtps_epi32((__m512)v);
#elif OPSOCKET_AVX2
    return (I)_mm256_cvtps_epi32((__m256)v);
#else
    I r;
    for (int i = 0; i < W; i++) r[i] = int32_t(__builtin_rintf(v[i]));
    return r;
#endif
}

// ---- f16 and bf16

inline float half_to_float(uint16_t h) {
#if OPSOCKET_AVX512 || OPSOCKET_AVX2
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 x;
    std::memcpy(&x, &h, 2);
    return x;
#else
    uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
    if (magnitude >= 0x7c00) bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
    else if (magnitude >= 0x400) bits = (magnitude << 13) + 0x38000000;
    else {
        float small = float(magnitude) * 0x1p-24f;
        std::memcpy(&bits, &small, 4);
    }
    bits |= sign;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
#endif
}

inline uint16_t float_to_half(float x) {
#if OPSOCKET_AVX512 || OPSOCKET_AVX2
    return _cvtss_sh(x, 0);
#elif defined(__aarch64__)
    __fp16 h = __fp16(x);
    uint16_t bits;
    std::memcpy(&bits, &h, 2);
    return bits;
#else
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
    if (bits < 0x38800000) {                        // below 2^-14: a multiple of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        return sign | uint16_t(__builtin_rintf(magnitude * 0x1p24f));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | uint16_t((bits - 0x38000000) >> 13);
#endif
}

inline float bf16_to_float(uint16_t h) {
    uint32_t bits = uint32_t(h) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline uint16_t float_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline F load_half(const void *p) {
#if OPSOCKET_AVX512
    return (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif OPSOCKET_AVX2
    return (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    F v;
    uint16_t h[W];
    std::memcpy(h, p, sizeof h);
    for (int i = 0; i < W; i++) v[i] = half_to_float(h[i]);
    return v;
#endif
}

inline void store_half(void *p, F v) {
#if OPSOCKET_AVX512
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, 0));
#elif OPSOCKET_AVX2
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, 0));
#else
    uint16_t h[W];
    for (int i = 0; i < W; i++) h[i] = float_to_half(v[i]);
    std::memcpy(p, h, sizeof h);
#endif
}

typedef uint16_t UH __attribute__((vector_size(W * 2)));

inline F load_bf16(const void *p) {
#if OPSOCKET_AVX512
    return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#else
    return (F)(__builtin_convertvector(load_as<UH>(p), U) << 16);
#endif
}

#if defined(__AVX512BF16__)
// The lanes that VCVTNEPS2BF16, which else rounds as is wanted, takes for 0.
inline __mmask16 subnormal(F v) { return _mm512_fpclass_ps_mask((__m512)v, 0x20); }
#endif

inline void store_bf16(void *p, F v) {
#if defined(__AVX512BF16__)
    if (!subnormal(v)) [[likely]] {
        _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
        return;
    }
#endif
    U bits = (U)v;
    U rounded = bits + 0x7fff + ((bits >> 16) & 1), quiet = bits | 0x400000;
#if OPSOCKET_AVX512
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32((__m512i)rounded, nan, (__m512i)quiet);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
#else
    U result = ((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded) >> 16;
    UH h = __builtin_convertvector(result, UH);
    __builtin_memcpy(p, &h, sizeof h);
#endif
}

// W bytes, a lane each. The compiler takes them apart one by one where it is only told to convert.
inline U load_bytes(const void *p) {
#if OPSOCKET_AVX512
    return (U)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif OPSOCKET_AVX2
    return (U)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    return __builtin_convertvector(load_as<UB>(p), U);
#endif
}

inline I load_signed_bytes(const void *p) {
#if OPSOCKET_AVX512
    return (I)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif OPSOCKET_AVX2
    return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    return __builtin_convertvector(load_as<B>(p), I);
#endif
}

// Elements of any float type as f32 and back; index in elements. `count`: of the last, partial vector.
inline float load_one(const void *base, int64_t i, int32_t dtype) {
    if (dtype == F32) return static_cast<const float *>(base)[i];
    uint16_t h = static_cast<const uint16_t *>(base)[i];
    return dtype == F16 ? half_to_float(h) : bf16_to_float(h);
}
inline void store_one(void *base, int64_t i, int32_t dtype, float x) {
    if (dtype == F32) static_cast<float *>(base)[i] = x;
    else static_cast<uint16_t *>(base)[i] = dtype == F16 ? float_to_half(x) : float_to_bf16(x);
}

inline const void *at(const void *base, int64_t i, int32_t dtype) {
    return static_cast<const char *>(base) + i * (dtype == F32 ? 4 : 2);
}
inline void *at(void *base, int64_t i, int32_t dtype) { return static_cast<char *>(base) + i * (dtype == F32 ? 4 : 2); }

template <int32_t T> inline F load_t(const void *base, int64_t i) {
    if constexpr (T == F32) return load(static_cast<const float *>(base) + i);
    else if constexpr (T == F16) return load_half(static_cast<const uint16_t *>(base) + i);
    else return load_bf16(static_cast<const uint16_t *>(base) + i);
}
template <int32_t T> inline void store_t(void *base, int64_t i, F v) {
    if constexpr (T == F32) store(static_cast<float *>(base) + i, v);
    else if constexpr (T == F16) store_half(static_cast<uint16_t *>(base) + i, v);
    else store_bf16(static_cast<uint16_t *>(base) + i, v);
}
// Two vectors that follow each other: to bf16 with half as many instructions.
template <int32_t T> inline void store_two(void *base, int64_t i, F a, F b) {
#if defined(__AVX512BF16__)
    if constexpr (T == BF16) {
        const __mmask16 in_a = subnormal(a), in_b = subnormal(b);
        if (_kortestz_mask16_u8(in_a, in_b)) [[likely]] {
            _mm512_storeu_si512(static_cast<uint16_t *>(base) + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
            return;
        }
    }
#endif
    store_t<T>(base, i, a);
    store_t<T>(base, i + W, b);
}

inline F load_any(const void *base, int64_t i, int32_t dtype) {
    return dtype == F32 ? load_t<F32>(base, i) : dtype == F16 ? load_t<F16>(base, i) : load_t<BF16>(base, i);
}
inline void store_any(void *base, int64_t i, int32_t dtype, F v) {
    if (dtype == F32) store_t<F32>(base, i, v);
    else if (dtype == F16) store_t<F16>(base, i, v);
    else store_t<BF16>(base, i, v);
}

// The first n <= W elements, the rest 0; and back.
inline F load_part(const void *base, int64_t i, int32_t dtype, int n) {
    if (n == W) return load_any(base, i, dtype);
#if OPSOCKET_AVX512
    if (dtype == F32)
        return (F)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), static_cast<const float *>(base) + i);
#endif
    F v = set(0.0f);
    for (int j = 0; j < n; j++) v[j] = load_one(base, i + j, dtype);
    return v;
}
inline void store_part(void *base, int64_t i, int32_t dtype, F v, int n) {
    if (n == W) return store_any(base, i, dtype, v);
#if OPSOCKET_AVX512
    if (dtype == F32)
        return _mm512_mask_storeu_ps(static_cast<float *>(base) + i, __mmask16((1u << n) - 1), (__m512)v);
#endif
    for (int j = 0; j < n; j++) store_one(base, i + j, dtype, v[j]);
}

// x becomes e^x within 2 units in the last place: 0 below -104, infinity above 88.73, NaN stays NaN.
// 2^n e^r with r in [-ln 2 / 2, ln 2 / 2]; r by two constants (Cody and Waite 1980); e^r by 1 + r + r^2 times a polynomial
// that was fitted to the least largest relative error (3e-9). What is below -104, hidden keys among it, is never
// multiplied out: underflow costs a processor hundreds of cycles. Each step of a vector waits for the one before, which
// is what several of them, step by step, make up for.
template <int N> inline void exp(F (&x)[N]) {
    const F whole = set(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
#if OPSOCKET_AVX512
    __mmask16 kept[N];
    for (int i = 0; i < N; i++) kept[i] = _mm512_cmp_ps_mask((__m512)x[i], _mm512_set1_ps(-104.0f), _CMP_NLT_UQ);
    for (int i = 0; i < N; i++) x[i] = min(set(90.0f), x[i]);
#else
    I kept[N];
    for (int i = 0; i < N; i++) kept[i] = ~(I)(x[i] < -104.0f);
    for (int i = 0; i < N; i++) x[i] = min(set(90.0f), as_float(as_int(x[i]) & kept[i]));
#endif
    F shifted[N], n[N], p[N];
    for (int i = 0; i < N; i++) shifted[i] = x[i] * 1.44269504f + whole;
    for (int i = 0; i < N; i++) n[i] = shifted[i] - whole;
    for (int i = 0; i < N; i++) x[i] = x[i] - n[i] * 0.693359375f;
    for (int i = 0; i < N; i++) x[i] = x[i] + n[i] * 2.12194440e-4f;
    for (int i = 0; i < N; i++) p[i] = x[i] * 0.0013814539415761828f + 0.00836874544620514f;
    for (const float c : {0.04166838899254799f, 0.1666652113199234f, 0.4999999403953552f, 1.0f, 1.0f})
        for (int i = 0; i < N; i++) p[i] = p[i] * x[i] + c;
#if OPSOCKET_AVX512
    for (int i = 0; i < N; i++) x[i] = (F)_mm512_maskz_scalef_ps(kept[i], (__m512)p[i], (__m512)n[i]);
#else
    // 2^n in two factors, so that neither over- nor underflows before the product does.
    for (int i = 0; i < N; i++) {
        const I all = as_int(shifted[i]) - as_int(whole), half = all >> 1, rest = all - half;
        const F y = p[i] * as_float((half + 127) << 23) * as_float((rest + 127) << 23);
        x[i] = as_float(as_int(y) & kept[i]);
    }
#endif
}
inline F exp(F x) {
    F one[1] = {x};
    exp(one);
    return one[0];
}

// Bytes of which there are 16, once for each 16 bytes of a vector.
inline I repeated(const uint8_t *table) {
    I v;
    for (int i = 0; i < W / 4; i++) std::memcpy(reinterpret_cast<uint8_t *>(&v) + i * 16, table, 16);
    return v;
}

// In each 16 bytes: a byte of the table's for each byte of codes, all of them below 16.
inline I look_up(I table, I codes) {
#if OPSOCKET_AVX512
    return (I)_mm512_shuffle_epi8((__m512i)table, (__m512i)codes);
#elif OPSOCKET_AVX2
    return (I)_mm256_shuffle_epi8((__m256i)table, (__m256i)codes);
#elif OPSOCKET_NEON
    return (I)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)codes);
#else
    uint8_t bytes[W * 4], places[W * 4];
    std::memcpy(bytes, &table, sizeof bytes), std::memcpy(places, &codes, sizeof places);
    I v;
    for (int i = 0; i < W * 4; i++) reinterpret_cast<uint8_t *>(&v)[i] = bytes[places[i]];
    return v;
#endif
}

// sum of four products in each 32-bit lane, added to acc: unsigned bytes of w times signed bytes of a. On AVX2 alone two
// neighbouring products are summed in 16 bits first: |sum| <= 32767 has to hold, so codes of w stay below 128 there
// (dot_u8), or below 16 and anything goes.
inline I dot_u8s8(I acc, I w, I a) {
#if OPSOCKET_AVX512
    return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)a);
#elif OPSOCKET_AVX_VNNI
    return (I)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)a);
#elif OPSOCKET_AVX2
    __m256i pairs = _mm256_maddubs_epi16((__m256i)w, (__m256i)a);
    return (I)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif OPSOCKET_NEON
    // Signed by signed: w - 128 fits, and 128 times the sum of a is added back.
    int32x4_t sum = vdotq_s32((int32x4_t)acc, vreinterpretq_s8_u8((uint8x16_t)w ^ vdupq_n_u8(128)), (int8x16_t)a);
    return (I)vaddq_s32(sum, vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(1), (int8x16_t)a), 7));
#else
    // Byte by byte of all lanes, rather than lane by lane: a hundredth of the code where kernels unroll this.
    for (int byte = 0; byte < 4; byte++)
        acc += (I)(((U)w >> (8 * byte)) & 255) * ((a << (24 - 8 * byte)) >> 24);
    return acc;
#endif
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket

#if OPSOCKET_EMULATED_BF16
#include "emulated_bf16.h"
#endif
