// Rows of floats as bf16 parts whose sum they are, in tiles of AMX: one part of bf16, two of f16, three of f32.
#pragma once
#include <algorithm>
#include <bit>

#include "amx.h"
#include "matmul_a8_rows.h"
#if OPSOCKET_AMX

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int TILE_ROWS = 16;

constexpr int parts_of(int32_t dtype) { return dtype == BF16 ? 1 : dtype == F16 ? 2 : 3; }

// Blocks of 16 rows, each [k / tile_k][part][16][tile_k] of bf16; zeros beyond the last row and beyond its end.
struct PartTiles {
    unsigned char *memory;
    int64_t k, tile_k, parts;

    int64_t tile_bytes() const { return TILE_ROWS * tile_k * 2; }
    int64_t block_bytes() const { return TILE_ROWS * k * 2 * parts; }
    unsigned char *row(int64_t r) const { return memory + r / TILE_ROWS * block_bytes() + r % TILE_ROWS * tile_k * 2; }
};

// Tiles take subnormal numbers for zeros, and what is left of a number behind its first parts is 2^-23 of it: rows with smaller
// numbers than this are multiplied with a power of two.
constexpr float SMALL = 0x1p-90f;

// A row of T, times a factor, as P parts. Cut and not rounded, they have the number's sign and are never infinite where it is
// not; 3 times 8 bits are all of an f32. Returns the least magnitude but 0, less one, as bits.
template <int32_t T, int P> inline uint32_t split_numbers(const void *x, int64_t first, float factor, const PartTiles &to, unsigned char *row) {
    const int64_t tile_bytes = to.tile_bytes(), tile_k = to.tile_k;
    if constexpr (T == BF16 && P == 1) {
        if (factor == 1) {
            __m256i least = _mm256_set1_epi16(-1);
            for (int64_t k = 0; k < to.k; k += tile_k, row += tile_bytes)
                for (int64_t i = 0; i < tile_k; i += W) {
                    const __m256i v = load_as<__m256i>(static_cast<const uint16_t *>(x) + first + k + i);
                    const __m256i size = _mm256_and_si256(v, _mm256_set1_epi16(0x7fff));
                    least = _mm256_min_epu16(least, _mm256_add_epi16(size, _mm256_set1_epi16(-1)));
                    std::memcpy(row + i * 2, &v, sizeof v);
                }
            alignas(32) uint16_t each[W];
            std::memcpy(each, &least, sizeof least);
            return uint32_t(*std::min_element(each, each + W)) << 16;
        }
    }
    const F factors = set(factor);
    U least = U{} - 1;
    for (int64_t k = 0; k < to.k; k += tile_k, row += P * tile_bytes)
        for (int64_t i = 0; i < tile_k; i += W) {
            F v = load_t<T>(x, first + k + i) * factors;
            const I size = as_int(v) & 0x7fffffff;
            least = min(least, (U)size - 1);
            // Infinity is its own first part, and so is what is no number, of which the upper half has to say so.
            const __mmask16 finite = _mm512_cmplt_epi32_mask((__m512i)size, _mm512_set1_epi32(0x7f800000));
            if constexpr (T == F32) {
                const __mmask16 none = _mm512_cmpgt_epi32_mask((__m512i)size, _mm512_set1_epi32(0x7f800000));
                v = (F)_mm512_mask_or_epi32((__m512i)v, none, (__m512i)v, _mm512_set1_epi32(0x400000));
            }
            for (int p = 0; p < P; p++) {
                const I part = as_int(v) & int32_t(0xffff0000);
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(row + p * tile_bytes + i * 2),
                                    _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)part, 16)));
                v = (F)_mm512_maskz_sub_ps(finite, (__m512)v, (__m512)part);
            }
        }
    alignas(64) uint32_t each[W];
    std::memcpy(each, &least, sizeof least);
    return *std::min_element(each, each + W);
}

// Splits columns [begin, begin + to.k) of a row of `width`, which is row r of these; what products of it are to be multiplied
// with. buffer: f32 of a row.
template <int32_t T, int P>
float split_row(const void *x, int64_t first, int64_t width, int64_t begin, const int64_t *permutation, float *buffer, const PartTiles &to,
                int64_t r) {
    unsigned char *const row = to.row(r);
    const bool in_place = !permutation && begin + to.k <= width;
    const float *f = in_place ? nullptr : as_f32_row(x, first, width, T, permutation, buffer) + begin;
    auto split = [&](float factor) {
        return in_place ? split_numbers<T, P>(x, first + begin, factor, to, row) : split_numbers<F32, P>(f, 0, factor, to, row);
    };
    if (split(1) >= std::bit_cast<uint32_t>(SMALL) - 1) [[likely]] return 1;
    float largest = 0;
    for (int64_t i = 0; i < to.k; i++) {
        const float size = std::fabs(in_place ? load_one(x, first + begin + i, T) : f[i]);
        if (size < INFINITY) largest = std::max(largest, size);
    }
    const int up = std::clamp(40 - std::ilogb(largest), 0, 126);  // to about 2^40: products have as much room above
    split(std::ldexp(1.0f, up));
    return std::ldexp(1.0f, -up);
}

using SplitRow = float (*)(const void *, int64_t, int64_t, int64_t, const int64_t *, float *, const PartTiles &, int64_t);

inline SplitRow splitting(int32_t dtype) { return dtype == F32 ? split_row<F32, 3> : dtype == F16 ? split_row<F16, 2> : split_row<BF16, 1>; }

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
#endif
