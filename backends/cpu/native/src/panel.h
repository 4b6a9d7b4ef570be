// Packed weights, layout "panels": W [n, k] as panels of 32 rows (32 columns of the product), each one sequential stream.
//
// A panel goes through k group by group. A group is slabs of 32 k (of 16 where groups are of 16), then 32 scales, f16 or
// f32, then 32 minimums of the same type where the format has them. Codes are unsigned: stored = code + zero_offset, and
// value = scale * (stored - zero_offset) - minimum. Or they are small floats, e4m3fn in 8 bits, whose zero_offset is 0; or
// nibbles that stand for integers, twice an e2m1 or one of iq4's, in slabs of 32: plus zero_offset these are bytes, as which
// they meet int8 rows. Where there are minimums, codes of fewer than 8 bits have no
// zero_offset either. In a slab of s k, step i holds k = 4 i .. 4 i + 3 of all 32 rows as 32 dwords, rows 0 to 31:
//   8 bits: step i is vectors 2 i, 2 i + 1 of 64 bytes.
//   4 bits: vectors 2 i, 2 i + 1 hold step i in the low nibbles and step i + s / 8 in the high ones, i < s / 8.
//   2 bits: vectors 2 i, 2 i + 1 hold step i + f s / 16 in bits 2 f and 2 f + 1, f = 0 .. 3, i < s / 16.
//   5 bits, slabs of 32 alone: the low four as those of 4 bits, then of step i the fifth in bits i of vectors 8 and 9.
//   6 bits, slabs of 16 alone: the low four as those of 4 bits, then the upper two as those of 2 bits.
// Scales that are codes themselves (super > 0): a panel goes through k by super-blocks of so many. One begins with its
// head: 32 units, f16, and 32 of the minimums, where there are any; then for each of its groups 32 scales, i8, and 32
// minimums, each to be multiplied with its row's unit. Its groups are slabs and nothing else then.
// Floats: [k][32] of f32 or f16; bf16 as [k / 2][32][2].
#pragma once
#include <cstdint>

#include "commands.h"
#include "processor.h"

namespace opsocket {

constexpr int PANEL = 32;

enum Code : int32_t { INTEGERS, E4M3FN, E2M1, IQ4 };

// What nibbles of E2M1 and of IQ4 stand for.
constexpr int8_t TWICE_E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int8_t IQ4_INTEGERS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Facts of one packed weight of codes. k is padded to whole slabs, n to whole panels, with codes of value 0 whose scale is 0.
struct Panels {
    const uint8_t *data;
    int64_t n, k;
    int64_t group;  // k that share a scale
    int32_t bits, zero_offset, has_minimum, scale_f32;
    int32_t code;  // of Code
    int64_t super;  // k that share a unit of their scales, a multiple of group; 0: scales are floats

    int64_t slab() const { return group % 32 ? 16 : 32; }
    int64_t slab_bytes() const { return slab() * PANEL * bits / 8; }
    int64_t scale_bytes() const { return PANEL * (scale_f32 ? 4 : 2); }
    int64_t code_bytes() const { return group * PANEL * bits / 8; }  // of a group
    int64_t kinds() const { return has_minimum ? 2 : 1; }                  // of scales
    int64_t head_bytes() const { return super ? kinds() * PANEL * (2 + super / group) : 0; }
    int64_t tail_bytes() const { return super ? 0 : scale_bytes() * kinds(); }  // of a group, behind its codes
    int64_t group_bytes() const { return code_bytes() + tail_bytes(); }
    int64_t block() const { return super ? super : group; }
    int64_t block_bytes() const { return head_bytes() + block() / group * group_bytes(); }
    int64_t panel_bytes() const { return k / block() * block_bytes(); }
    const uint8_t *group_at(const uint8_t *panel, int64_t g) const {
        if (!super) return panel + g * group_bytes();
        const int64_t groups = super / group;
        return panel + g / groups * block_bytes() + head_bytes() + g % groups * group_bytes();
    }
    int64_t count() const { return (n + PANEL - 1) / PANEL; }
};

// Asks for bytes of a weight that are read some way further on, as data that need not stay: of few rows a weight is read once
// and not again before all the others, and what a host needs between two steps should not leave the caches for it.
inline void ask_ahead(const uint8_t *p, int64_t bytes) {
    constexpr int64_t AHEAD = 4096;
    ask_for_lines(p + AHEAD, bytes);
}

}  // namespace opsocket
