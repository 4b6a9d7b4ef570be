// Tiles of AMX: eight of up to 16 rows of up to 64 bytes, and products of three of them.
//
// A tile of the second factor holds four bytes, or two bf16, of 16 columns in each row: as panels and tiles of keys and
// values hold them.
#pragma once
#include "simd.h"
#if OPSOCKET_AMX

namespace opsocket {
namespace OPSOCKET_LEVEL {

// What LDTILECFG says of all tiles.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};

    void set(int tile, int64_t row_count, int64_t row_bytes) {
        rows[tile] = uint8_t(row_count), bytes[tile] = uint16_t(row_bytes);
    }
    // All tiles are zeros then.
    void use() const { asm volatile("ldtilecfg %0" : : "m"(*this)); }
};

// Tiles that hold something cost every switch of threads, and keep a core from sleeping.
struct Tiles {
    Tiles() = default;
    Tiles(const Tiles &) = delete;
    ~Tiles() { asm volatile("tilerelease"); }
};

template <int T> inline void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(T)); }
// The array of no length is all that lies from there on: what else is in memory the compiler may keep in registers.
template <int T> inline void load_tile(const void *from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T), "m"(*static_cast<const char(*)[]>(from)));
}
template <int T> inline void store_tile(void *to, int64_t stride) {
    asm volatile("tilestored %%tmm%c3, (%1,%2,1)" : "=m"(*static_cast<char(*)[]>(to)) : "r"(to), "r"(stride), "i"(T));
}
// sum += a b: i32 of signed bytes by signed or unsigned ones; f32 of bf16, whose subnormals are zeros.
template <int SUM, int A, int B> inline void add_signed() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
}
template <int SUM, int A, int B> inline void add_unsigned() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
}
template <int SUM, int A, int B> inline void add_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
#endif
