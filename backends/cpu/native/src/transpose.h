// 16 rows of 16 dwords, turned.
#pragma once
#include <utility>

#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

#if OPSOCKET_AVX512
// row(i), i < 16: a vector each. put(j, v): v has lane j of row i in lane i. All rows are asked for before any is put.
template <class Row, class Put> inline void transpose_rows(const Row &row, const Put &put) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = row(i);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        put(i, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
        put(i + 4, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
        put(i + 8, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
        put(i + 12, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
}
#endif

// In place: x[i][j] becomes x[j][i].
inline void transpose16(uint32_t *x, int64_t stride) {
#if OPSOCKET_AVX512
    transpose_rows([&](int i) { return _mm512_loadu_si512(x + i * stride); },
                   [&](int i, __m512i v) { _mm512_storeu_si512(x + i * stride, v); });
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) std::swap(x[i * stride + j], x[j * stride + i]);
#endif
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
