// Rows of a table in panels, dequantized and rounded once.
//
// A row lies in its panel as words of four bytes, 128 bytes apart: they are brought together first, and then read as
// vectors. What a row takes is mostly the wait for its lines, of which other rows want other words.
#include "elementwise.h"
#include "panel_codes.h"
#include "small_floats.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// A row's codes, a byte each, as many as the weight has columns. panel: that of the row, which is number `lane` of it.
template <int BITS, int SLAB> static void gather_codes(const Panels &w, const uint8_t *panel, int64_t lane, uint8_t *codes) {
    constexpr int LOW = low_bits(BITS), FIELDS = 8 / LOW, RUN = SLAB / FIELDS;
    constexpr uint32_t BYTES = 0x01010101u, MASK = BYTES * ((1 << LOW) - 1);
    auto word_at = [&](const uint8_t *p) {
        uint32_t word;
        std::memcpy(&word, p, 4);
        return word;
    };
    for (int64_t group = 0; group < w.k / w.group; group++) {
        const uint8_t *words = w.group_at(panel, group) + lane * 4;
        for (int64_t s = 0; s < w.group / SLAB; s++, words += SLAB * PANEL * BITS / 8, codes += SLAB) {
            for (int i = 0; i < RUN; i += 4) {
                const uint32_t word = word_at(words + i * PANEL);
                for (int field = 0; field < FIELDS; field++) {
                    const uint32_t four = word >> (LOW * field) & MASK;
                    std::memcpy(codes + field * RUN + i, &four, 4);
                }
            }
            if constexpr (BITS != LOW) {
                constexpr int UPPER = BITS - LOW, UPPER_RUN = SLAB * UPPER / 8;
                for (int i = 0; i < UPPER_RUN; i += 4) {
                    const uint32_t word = word_at(words + SLAB * PANEL / 2 + i * PANEL);
                    for (int field = 0; field < 8 / UPPER; field++) {
                        uint8_t *to = codes + field * UPPER_RUN + i;
                        const uint32_t four = word_at(to) | (word >> (UPPER * field) & BYTES * ((1 << UPPER) - 1)) << LOW;
                        std::memcpy(to, &four, 4);
                    }
                }
            }
        }
    }
}

// What codes stand for before a scale is applied.
static F numbers(const Panels &w, I codes) {
    if (w.code == E4M3FN) return e4m3fn(codes);
    if (w.code == E2M1) return twice_e2m1(codes);
    if (w.code == IQ4) return convert(((look_up(repeated(reinterpret_cast<const uint8_t *>(IQ4_INTEGERS)), codes) << 24)) >> 24);
    return convert(codes - w.zero_offset);
}

// In order of the table's columns. memory: of this thread, for a row in f32, at its beginning, and for codes.
static void coded_row(const Embedding &c, int64_t id, unsigned char *memory) {
    const Panels &w = c.weight;
    const int64_t lane = id % PANEL;
    const uint8_t *panel = w.data + id / PANEL * w.panel_bytes();
    float *row = reinterpret_cast<float *>(memory);
    uint8_t *codes = memory + w.k * 4;
    by_form(w, [&](auto bits, auto slab) {
        gather_codes<decltype(bits)::value, decltype(slab)::value>(w, panel, lane, codes);
    });
    for (int64_t first = 0; first < w.k; first += w.group) {
        const F scale = set(scales_of(w, panel, first / w.group, 0).one(lane));
        const F minimum = set(w.has_minimum ? scales_of(w, panel, first / w.group, 1).one(lane) : 0.0f);
        for (int64_t i = first; i < first + w.group; i += W) {
            F value = scale * numbers(w, (I)load_bytes(codes + i));
            if (w.has_minimum) value -= minimum;
            if (!c.permutation) store(row + i, value);
            else
                for (int64_t j = i; j < std::min(i + W, c.k); j++) row[c.permutation[j]] = value[j - i];
        }
    }
}

// y = of the table's dtype S to that of the result. row: of this thread.
template <int32_t S, int32_t T> static void round_row(const void *row, void *y, int64_t k) {
    int64_t i = 0;
    for (; i + W <= k; i += W) store_t<T>(y, i, load_t<S>(row, i));
    for (; i < k; i++) store_one(y, i, T, load_one(row, i, S));
}

// A row of a table of floats, as it is.
template <int32_t S> static void float_row(const Embedding &c, int64_t id, void *row) {
    using Bits = std::conditional_t<S == F16, uint16_t, uint32_t>;  // bf16 comes in pairs
    const int64_t count = S == BF16 ? (c.k + 1) / 2 : c.k;
    const Bits *from = reinterpret_cast<const Bits *>(c.weight.data) + id / PANEL * count * PANEL + id % PANEL;
    Bits *to = static_cast<Bits *>(row);
    for (int64_t i = 0; i < count; i++) to[i] = from[i * PANEL];
}

void embedding(const Command *command, Worker &worker) {
    const Embedding &c = *static_cast<const Embedding *>(command);
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    const bool coded = c.float_dtype < 0;
    by_dtype(c.dtype, [&](auto to) {
        by_dtype(coded ? int32_t(F32) : c.float_dtype, [&](auto from) {
            constexpr int32_t T = to, S = from;
            for (int64_t t = begin; t < end; t++) {
                const int64_t id = c.ids[t];
                if (id < 0 || id >= c.weight.n) {  // checked only under checked="deep"
                    for (int64_t k = 0; k < c.k; k++) store_one(c.y, t * c.y_stride + k, T, __builtin_nanf(""));
                    continue;
                }
                if (coded) coded_row(c, id, worker.own);
                else float_row<S>(c, id, worker.own);
                round_row<S, T>(worker.own, at(c.y, t * c.y_stride, T), c.k);
            }
        });
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
