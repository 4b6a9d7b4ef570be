// Fixed point numbers as signed digits of base 256, by which integer codes are multiplied four at a time (vpdpbusd): sums
// of code * digit are exact, and joined at their end. 2 to 4 products for 4 codes, where f32 takes 4 and has to make
// floats of the codes first.
//
// Codes are unsigned there, so an offset (of i8 too, once its sign's bit is turned) is taken off a sum by what it begins
// with.
#pragma once
#include "fixed_point.h"
#include "tiles.h"

// Where bf16 pairs have an instruction of their own, that one takes what may be rounded to bf16.
#if (OPSOCKET_AVX512 && !OPSOCKET_AVX512_BF16) || OPSOCKET_AVX_VNNI
#define OPSOCKET_DIGITS 1
#endif

// Where neither is there, numbers are one word of 16 bits, by which codes are multiplied two at a time (vpmaddwd): as many
// instructions as f32 takes, but codes become words by half as many as floats.
#if OPSOCKET_AVX2 && !OPSOCKET_AVX_VNNI
#define OPSOCKET_WORDS 1
#endif

namespace opsocket {
namespace OPSOCKET_LEVEL {

// What unsigned codes are beyond what they stand for; 2^offset_bits.
constexpr int offset_bits(int32_t code) { return code == KV_I8 ? 7 : code == KV_I4 ? 3 : 1; }
static_assert(kv_offset(KV_I4) == 1 << offset_bits(KV_I4) && kv_offset(KV_I2) == 1 << offset_bits(KV_I2));

#if OPSOCKET_WORDS
// Of each dword's codes 4 step to 4 step + 3 the first and third, and the second and fourth: pairs of 16 bits. i8 are what they
// stand for, others unsigned.
template <int32_t C> inline void pairs_of_codes(I dwords, int step, I &even, I &odd) {
    if constexpr (C == KV_I8) {
        even = (I)_mm256_srai_epi16(_mm256_slli_epi16((__m256i)dwords, 8), 8);
        odd = (I)_mm256_srai_epi16((__m256i)dwords, 8);
    } else {
        constexpr int32_t bits = kv_bits(C), low = ((1 << bits) - 1) * 0x00010001;
        const int shift = step * bits;
        even = (shift ? (I)((U)dwords >> shift) : dwords) & low;
        odd = (I)_mm256_srli_epi16((__m256i)dwords, shift + 8);
        if (shift + bits < 8) odd &= low;
    }
}
// sum + products of two codes with two numbers of 16 bits in each dword.
inline I add_pairs(I sum, I codes, I numbers) {
    return sum + (I)_mm256_madd_epi16((__m256i)codes, (__m256i)numbers);
}
#endif

#if OPSOCKET_DIGITS
// The largest number of `digits` digits, less what leaves room for a factor and a product that are rounded up.
constexpr float most_in_digits(int digits) { return digits == 3 ? 0x7f7f7dp0f : 0x7f7f7ep8f; }

// W numbers of at most most_in_digits(4) in size, rounded to integers, as `digits_of_integers` has them.
inline I digits_of(F numbers) { return digits_of_integers(round(numbers)); }

// Four codes of each dword, unsigned: codes 4 step to 4 step + 3.
template <int32_t C> inline I unsigned_codes(I dwords, int step) {
    if constexpr (C == KV_I8) return dwords ^ int32_t(0x80808080);
    else {
        constexpr int32_t bits = kv_bits(C), low = ((1 << bits) - 1) * 0x01010101;
        return (step ? (I)((U)dwords >> (step * bits)) : dwords) & low;
    }
}

// Adds up digits of numbers, to be taken off the sums of their products with codes.
class DigitSums {
   public:
    void add(I digits) { sums = dot_u8s8(sums, set(int32_t(0x01010101)), digits); }
    // What the sum of each digit's products begins with.
    void store(int32_t code, int32_t *first) const {
        const I all = sum_of_fours(sums);
        for (int n = 0; n < 4; n++) first[n] = -all[n] * (1 << offset_bits(code));
    }

   private:
    I sums{};
};

// sum + codes * digit, four of each in a dword.
inline void add_products(I &sum, I codes, const int32_t &digit) {
#if OPSOCKET_AVX512
    // As written here: the compiler would load the digit by an instruction of its own, and copy sums from register to
    // register.
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(digit));
#else
    sum = dot_u8s8(sum, codes, set(digit));
#endif
}

// Vectors of codes beside each other: as many as have sums that fill two pipes, whose products take 5 cycles, and fit
// registers.
constexpr int digits_beside(int rows, int digits) {
    if (W < 16) return rows * digits * 4 <= 12 ? 4 : rows * digits * 2 <= 12 ? 2 : 1;
    return rows == 1 ? 4 : rows * digits < 12 ? 2 : 1;
}

// What the sums of DIGITS digits come to; with `left_out` digits below them.
template <int DIGITS> inline F join_digits(const I *sums, int left_out) {
    F all = convert(sums[DIGITS - 1]);
#pragma GCC unroll 3
    for (int n = DIGITS - 2; n >= 0; n--) all = all * 256.0f + convert(sums[n]);
    return left_out ? all * 256.0f : all;
}
#endif

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
