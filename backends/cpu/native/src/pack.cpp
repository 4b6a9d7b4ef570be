// Codes, a byte each, and floats into panels: once, at load.
#include "pack.h"

#include <cstring>
#include <vector>

namespace opsocket {
namespace {

// Bits [place, place + WIDTH) of a slab's codes, of 32 rows from `column` on.
template <int WIDTH> uint8_t *pack_plane(const uint8_t *const *rows, int64_t column, int64_t slab, int place, uint8_t *to) {
    constexpr int FIELDS = 8 / WIDTH;
    constexpr uint32_t MASK = 0x01010101u * ((1 << WIDTH) - 1);
    const int64_t steps = slab / 4 / FIELDS;
    for (int64_t step = 0; step < steps; step++)
        for (int row = 0; row < PANEL; row++, to += 4) {
            uint32_t packed = 0;
            for (int field = 0; field < FIELDS; field++) {
                uint32_t four;
                std::memcpy(&four, rows[row] + column + 4 * (field * steps + step), 4);
                packed |= (four >> place & MASK) << (field * WIDTH);
            }
            std::memcpy(to, &packed, 4);
        }
    return to;
}

uint8_t *pack_slab(const uint8_t *const *rows, int64_t column, int64_t slab, int32_t bits, uint8_t *to) {
    switch (bits) {
        case 2: return pack_plane<2>(rows, column, slab, 0, to);
        case 5: return pack_plane<1>(rows, column, slab, 4, pack_plane<4>(rows, column, slab, 0, to));
        case 6: return pack_plane<2>(rows, column, slab, 4, pack_plane<4>(rows, column, slab, 0, to));
        case 8: return pack_plane<8>(rows, column, slab, 0, to);
        default: return pack_plane<4>(rows, column, slab, 0, to);
    }
}

// Whole elements of 32 rows, `stride` bytes apart, side by side; zeros in place of rows that are missing.
template <class T> uint8_t *pack_elements(const uint8_t *floats, int64_t stride, int64_t count, int64_t rows, uint8_t *to) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t row = 0; row < PANEL; row++, to += sizeof(T)) {
            T element = 0;
            if (row < rows) std::memcpy(&element, floats + row * stride + i * int64_t(sizeof(T)), sizeof element);
            std::memcpy(to, &element, sizeof element);
        }
    return to;
}

}  // namespace

void pack_floats(uint8_t *panels, const uint8_t *floats, int64_t k, int64_t bytes, bool pairs, int64_t first, int64_t rows) {
    const int64_t stored = pairs ? (k + 1) / 2 * 2 : k, stride = k * bytes;
    for (int64_t begin = 0; begin < rows; begin += PANEL) {
        const uint8_t *from = floats + begin * stride;
        const int64_t here = rows - begin < PANEL ? rows - begin : PANEL;
        uint8_t *to = panels + (first + begin) * stored * bytes;
        if (bytes == 4) pack_elements<uint32_t>(from, stride, k, here, to);
        else if (!pairs) pack_elements<uint16_t>(from, stride, k, here, to);
        else {
            to = pack_elements<uint32_t>(from, stride, k / 2, here, to);
            for (int64_t row = 0; k % 2 && row < PANEL; row++, to += 4) {
                std::memset(to, 0, 4);
                if (row < here) std::memcpy(to, from + row * stride + (k - 1) * 2, 2);
            }
        }
    }
}

void pack_codes(const Panels &w, const uint8_t *codes, int64_t columns, int64_t first, int64_t rows) {
    const uint8_t nothing = w.code == INTEGERS ? uint8_t(w.zero_offset) : 0;
    const std::vector<uint8_t> blank(size_t(w.k), nothing);
    std::vector<uint8_t> padded(columns < w.k ? size_t(w.k * PANEL) : 0, nothing);
    for (int64_t begin = 0; begin < rows; begin += PANEL) {
        const uint8_t *of[PANEL];
        for (int64_t row = 0; row < PANEL; row++) {
            of[row] = blank.data();
            if (begin + row >= rows) continue;
            of[row] = codes + (begin + row) * columns;
            if (columns == w.k) continue;
            std::memcpy(padded.data() + row * w.k, of[row], size_t(columns));
            of[row] = padded.data() + row * w.k;
        }
        uint8_t *panel = const_cast<uint8_t *>(w.data) + (first + begin) / PANEL * w.panel_bytes();
        for (int64_t group = 0; group < w.k / w.group; group++) {
            uint8_t *to = const_cast<uint8_t *>(w.group_at(panel, group));
            for (int64_t column = 0; column < w.group; column += w.slab())
                to = pack_slab(of, group * w.group + column, w.slab(), w.bits, to);
        }
    }
}

}  // namespace opsocket
