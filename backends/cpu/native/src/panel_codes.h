// Codes and scales of panels as the vectors that kernels compute with.
#pragma once
#include <type_traits>

#include "panel.h"
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// In place of a number of bits: four, which are looked up.
constexpr int BY_TABLE = 7;

constexpr int stored_bits(int bits) { return bits == BY_TABLE ? 4 : bits; }
constexpr int low_bits(int bits) { return bits == 5 || bits == 6 ? 4 : stored_bits(bits); }

// What the bits beyond the low four add to codes of step t of a slab, a byte each: vector v of its 32 dwords.
template <int BITS, int SLAB> inline I upper_bits(const uint8_t *slab, int t, int v) {
    constexpr int UPPER = BITS - 4, STEPS = SLAB / 4 / (8 / UPPER);
    static_assert(STEPS > 0);
    const I packed = load_as<I>(slab + SLAB * PANEL / 2 + t % STEPS * PANEL * 4 + v * W * 4);
    const int place = t / STEPS * UPPER;
    return (place <= 4 ? packed << (4 - place) : packed >> (place - 4)) & (UPPER == 1 ? 0x10101010 : 0x30303030);
}

// Codes of step t of a slab, a byte each: vector v of its 32 dwords.
template <int BITS, int SLAB> inline I codes_of_step(const uint8_t *slab, int t, int v) {
    constexpr int LOW = low_bits(BITS), STEPS = SLAB / 4 / (8 / LOW);
    const I packed = load_as<I>(slab + t % STEPS * PANEL * 4 + v * W * 4);
    if constexpr (LOW == 8) return packed;
    const I low = (packed >> (t / STEPS * LOW)) & (LOW == 4 ? 0x0f0f0f0f : 0x03030303);
    if constexpr (BITS == LOW) return low;
    else return low | upper_bits<BITS, SLAB>(slab, t, v);
}

// Whether nibbles are looked up.
inline bool is_by_table(const Panels &w) { return w.code == E2M1 || w.code == IQ4; }

// What their integers are as bytes.
struct ByteTable {
    alignas(16) uint8_t bytes[16];

    explicit ByteTable(const Panels &w) {
        const int8_t *integers = w.code == IQ4 ? IQ4_INTEGERS : TWICE_E2M1;
        for (int i = 0; i < 16; i++) bytes[i] = uint8_t(integers[i] + w.zero_offset);
    }
};

// visit(bits, slab), both as types of constants. Of 5 bits there are slabs of 32 alone, of 6 slabs of 16.
template <class Visit> inline void by_form(const Panels &w, Visit visit) {
    constexpr std::integral_constant<int, 16> sixteen{};
    constexpr std::integral_constant<int, 32> thirty_two{};
    auto with_slab = [&](auto bits) { w.slab() == 32 ? visit(bits, thirty_two) : visit(bits, sixteen); };
    switch (w.bits) {
        case 2: return with_slab(std::integral_constant<int, 2>{});
        case 4: return with_slab(std::integral_constant<int, 4>{});
        case 5: return visit(std::integral_constant<int, 5>{}, thirty_two);
        case 6: return visit(std::integral_constant<int, 6>{}, sixteen);
        default: return with_slab(std::integral_constant<int, 8>{});
    }
}

// A group's 32 scales, or its minimums.
struct Scales {
    const uint8_t *values;  // floats, or i8
    const uint8_t *units;   // of i8, f16; else null
    bool is_f32;

    // Lanes from i on.
    F vector(int i) const {
        if (units) return convert(load_signed_bytes(values + i)) * load_half(units + i * 2);
        return is_f32 ? load_as<F>(values + i * 4) : load_half(values + i * 2);
    }
    float one(int64_t i) const {
        if (units) return float(int8_t(values[i])) * load_one(units, i, F16);
        return load_one(values, i, is_f32 ? F32 : F16);
    }
};

// kind 0: scales, 1: minimums. Of a group whose codes begin at `codes`, number `g` of the super-block whose head is `head`.
inline Scales scales_at(const Panels &w, const uint8_t *codes, const uint8_t *head, int64_t g, int kind) {
    if (!w.super) return {codes + w.code_bytes() + kind * w.scale_bytes(), nullptr, w.scale_f32 != 0};
    return {head + (w.kinds() * (2 + g) + kind) * PANEL, head + kind * PANEL * 2, false};
}

// Of group g of a panel.
inline Scales scales_of(const Panels &w, const uint8_t *panel, int64_t g, int kind) {
    const int64_t groups = w.super ? w.super / w.group : 1;
    return scales_at(w, w.group_at(panel, g), panel + g / groups * w.block_bytes(), g % groups, kind);
}

// Scales, and minimums, of all groups of a super-block as floats: `COUNT` vectors of lanes from vector `first` on. The
// next group's are `stride` floats on; minimums follow their 32 scales.
template <bool MINIMUMS, int COUNT> inline void expand_head(const uint8_t *head, int64_t groups, int first, float *to, int64_t stride) {
    constexpr int KINDS = MINIMUMS ? 2 : 1;
    for (int kind = 0; kind < KINDS; kind++)
        for (int v = first; v < first + COUNT; v++) {
            const F unit = load_half(head + kind * PANEL * 2 + v * W * 2);
            const uint8_t *codes = head + (KINDS * 2 + kind) * PANEL + v * W;
            float *here = to + kind * PANEL + v * W;
            for (int64_t g = 0; g < groups; g++, codes += KINDS * PANEL, here += stride)
                store(here, convert(load_signed_bytes(codes)) * unit);
        }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
