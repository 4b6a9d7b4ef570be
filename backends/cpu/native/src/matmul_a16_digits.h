// Few rows of float activations as fixed point numbers, in int8 digits of base 256, times packed codes.
//
// Sums of codes and digits are exact (vpdpbusd), 64 codes at a time, and joined once for each slab; as floats, codes have
// to be widened first, 16 at a time. The last bit of a slab's numbers is 29 (4 digits) or 21 bits (3, for rows of shorter
// floats) below the leading bit of the largest. What a row loses by that is less than one f32 rounding of the sum of its
// magnitudes: with 4 digits it can't be more, with 3 it is looked at.
#pragma once
#include "fixed_point.h"
#include "matmul_a8_rows.h"
#include "panel_products.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// How many rows of so many digits are sooner multiplied so than as floats by codes of so many bits (or BY_TABLE): where four
// bytes' products are one instruction, as many as have sums in registers (of 24 the compiler keeps some in memory); where
// they are two, one row of up to five bits. More rows cost more than they saved when the second part of a panel's columns had no
// memory to wait for; since it has, they have not been measured.
constexpr int most_digit_rows([[maybe_unused]] int digits, [[maybe_unused]] int bits) {
#if OPSOCKET_AVX512
    return digits == 4 ? 2 : 3;
#elif OPSOCKET_AVX_VNNI
    return 2;
#elif OPSOCKET_AVX2
    return bits <= 5 ? 1 : 0;
#else
    return 0;
#endif
}

// Some rows of x. Of step i of a row, columns 4 i to 4 i + 3: digits [steps][rows][DIGITS][4], lowest first. starts
// [slabs][rows][DIGITS]: what sums of their products begin with. units [slabs][rows]: what an integer's 1 is. totals
// [rows][groups]: sums of x, where there are minimums.
struct DigitRows {
    int8_t *digits;
    int32_t *starts;
    float *units, *totals;
    float *row;  // one of them as f32

    // Room for all rows of k columns and more than is stored there.
    static int64_t bytes(int64_t rows, int64_t digits, int64_t k) {
        return whole_blocks(k) * (rows * (digits + digits / 4 + 2) + 4) + 1024;
    }
    static DigitRows in(unsigned char *own, int64_t rows, int64_t count, int64_t k) {
        const int64_t padded = whole_blocks(k), slabs = padded / 16;
        DigitRows all;
        all.digits = reinterpret_cast<int8_t *>(own);
        all.starts = reinterpret_cast<int32_t *>(all.digits + padded * rows * count + 64);
        all.units = reinterpret_cast<float *>(all.starts + slabs * rows * count + 16);
        all.totals = all.units + slabs * rows;
        all.row = all.totals + slabs * rows;
        return all;
    }
};

// Row r of x, f32 of whole blocks. False where it has no such digits: it is not finite, too small, or loses too much.
template <int ROWS, int DIGITS, int SLAB>
bool split_row(const Panels &w, const float *x, int r, const DigitRows &to) {
    constexpr int LEADING = 8 * DIGITS - 3;  // where the leading bit of the largest number comes to stand
    const int64_t slabs = w.k / SLAB;
    const I ones = set(int32_t(0x01010101));
    F lost = set(0.0f), whole = set(0.0f);  // of all magnitudes
    int8_t *digits = to.digits + r * DIGITS * 4;
    for (int64_t s = 0; s < slabs; s++, x += SLAB) {
        const float largest = largest_magnitude(x, SLAB);
        int32_t exponent;
        std::memcpy(&exponent, &largest, 4);
        exponent >>= 23;
        if (exponent == 255 || (exponent < 32 && largest > 0)) return false;
        if (largest == 0) exponent = 127;
        const F factor = as_float(set((254 + LEADING - exponent) << 23));
        const int32_t unit = (exponent - LEADING) << 23;
        std::memcpy(to.units + s * ROWS + r, &unit, 4);
        I sums{};
        for (int i = 0; i < SLAB; i += W) {
            const F number = load(x + i) * factor;
            const I integer = round(number);
            if (DIGITS < 4) {
                lost += abs(number - convert(integer)) * as_float(set(unit));
                whole += abs(load(x + i));
            }
            const I four = digits_of_integers(integer);
            sums = dot_u8s8(sums, ones, four);
            for (int step = 0; step < W / 4; step++, digits += ROWS * DIGITS * 4)
                std::memcpy(digits, reinterpret_cast<const int8_t *>(&four) + step * 16, DIGITS * 4);
        }
        sums = sum_of_fours(sums) * -w.zero_offset;
        std::memcpy(to.starts + (s * ROWS + r) * DIGITS, &sums, DIGITS * 4);
    }
    return DIGITS == 4 || sum(lost) <= sum(whole) * 0x1p-24f;
}

// What sums of digits come to, in units: pairs as integers, which hold 2^8 times 32 products of bytes.
template <int DIGITS> inline F join(const I *sums) {
    const F high = convert((sums[DIGITS - 1] << 8) + sums[DIGITS - 2]);
    if constexpr (DIGITS == 4) return high * 65536.0f + convert((sums[1] << 8) + sums[0]);
    else return high * 256.0f + convert(sums[0]);
}

constexpr int64_t RUN_K = 512;  // k of a panel that all parts of its columns pass before the next: 9 KB of 4 bits

// sums [ROWS][32] = the rows times one panel.
template <int ROWS, int DIGITS, int BITS, int SLAB>
void rows_by_digits(const Panels &w, const uint8_t *panel, const DigitRows &x, float *sums) {
    constexpr int MR = ROWS * DIGITS, CHAINS = W == 16 && MR <= 4 ? 2 : 1;
    constexpr int64_t SLAB_BYTES = SLAB * PANEL * stored_bits(BITS) / 8;
    const int64_t groups = w.k / w.group, block_groups = w.block() / w.group, slabs = w.group / SLAB;
    const int64_t head_bytes = w.head_bytes(), tail_bytes = w.tail_bytes();
    const bool has_minimum = w.has_minimum;
    const ByteTable bytes(w);
    const I table = BITS == BY_TABLE ? repeated(bytes.bytes) : I{};
    // Where columns are taken in parts, some k at a time: what the parts share is still there for the second, and while they
    // are multiplied memory is asked for what comes after them.
    const int64_t run = PARTS == 1 ? groups : std::max<int64_t>(1, RUN_K / w.block()) * block_groups;
    const uint8_t *run_codes = panel;
    for (int64_t begin = 0; begin < groups; begin += run) {
        const int64_t end = std::min(groups, begin + run);
        const uint8_t *codes = run_codes;
        const int64_t share = PARTS == 1 ? 0 : w.block_bytes() / (block_groups * PARTS * 64) * 64 + 64;
        const uint8_t *following = run_codes + (end - begin) / block_groups * w.block_bytes();
#pragma GCC unroll 1
        for (int part = 0; part < PARTS; part++) {
            F f[ROWS][PART];
            const int first = part * PART * W;
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < PART; v++) f[r][v] = begin ? load(sums + r * PANEL + first + v * W) : set(0.0f);
            const uint8_t *head = codes = run_codes;
            const unsigned char *digits = reinterpret_cast<const unsigned char *>(x.digits) + begin * w.group * MR;
            const int32_t *starts = x.starts + begin * slabs * MR;
            const float *units = x.units + begin * slabs * ROWS, *totals = x.totals + begin;
            for (int64_t g = begin, in_block = 0; g < end; g++, in_block = in_block + 1 < block_groups ? in_block + 1 : 0) {
                for (int64_t i = 0; i < share; i += 64, following += 64) ask_for_line(following);
                if (head_bytes && in_block == 0) {
                    if (PARTS == 1) ask_ahead(codes, head_bytes);
                    head = codes, codes += head_bytes;
                }
                const Scales scales = scales_at(w, codes, head, in_block, 0);
                F scale[PART];
                for (int v = 0; v < PART; v++) scale[v] = scales.vector(first + v * W);
                if (has_minimum) {
                    const Scales minimums = scales_at(w, codes, head, in_block, 1);
                    for (int v = 0; v < PART; v++) {
                        const F minimum = minimums.vector(first + v * W);
                        for (int r = 0; r < ROWS; r++) f[r][v] -= minimum * totals[r * groups];
                    }
                }
                totals++;
                for (int64_t s = slabs; s; s--, codes += SLAB_BYTES, digits += SLAB * MR) {
                    I acc[CHAINS][MR][PART];
                    for (int chain = 0; chain < CHAINS; chain++)
                        for (int m = 0; m < MR; m++)
                            for (int v = 0; v < PART; v++) acc[chain][m][v] = chain ? I{} : set(starts[m]);
                    starts += MR;
                    if (PARTS == 1) ask_ahead(codes, SLAB_BYTES);
                    add_slab<MR, BITS, SLAB, CHAINS, false, MR * 4>(acc, codes + first * 4, digits, 4, 0, table);
                    for (int r = 0; r < ROWS; r++)
                        for (int v = 0; v < PART; v++) {
                            I whole[DIGITS];
                            for (int d = 0; d < DIGITS; d++) {
                                whole[d] = acc[0][r * DIGITS + d][v];
                                if (CHAINS == 2) whole[d] += acc[CHAINS - 1][r * DIGITS + d][v];
                            }
                            f[r][v] += join<DIGITS>(whole) * units[r] * scale[v];
                        }
                    units += ROWS;
                }
                if (PARTS == 1) ask_ahead(codes, tail_bytes);
                codes += tail_bytes;
            }
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < PART; v++) store(sums + r * PANEL + first + v * W, f[r][v]);
        }
        run_codes = codes;
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
