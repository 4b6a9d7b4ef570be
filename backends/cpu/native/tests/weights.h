// Packed weights, put together code by code as panel.h describes them, with what they stand for in f64.
#pragma once
#include "arrays.h"
#include "panel.h"

namespace test {

// group 0: a row has one scale, and its columns are padded to whole slabs. super: k that share a unit of scales that are
// codes; 0: scales are floats.
struct CodeFormat {
    int bits;
    bool minimum, scale_f32;
    int64_t group;
    int32_t code = opsocket::INTEGERS;
    int64_t super = 0;
    bool largest = false;  // every code is
};

// What packing leaves as scales that are codes, or has in 5 or 6 bits: weights.py.
inline CodeFormat some_k_quant(Random &random) {
    static constexpr struct {
        int bits;
        bool minimum;
        int64_t group;
    } forms[] = {{2, true, 16}, {4, true, 32}, {5, true, 32}, {4, false, 16}, {6, false, 16}, {5, false, 32}, {5, true, 32}};
    const int64_t i = random.below(7);
    const int64_t super = i >= 5 ? 0 : forms[i].group << (1 + random.below(4));
    return {forms[i].bits, forms[i].minimum, false, forms[i].group, opsocket::INTEGERS, super};
}

// Nibbles that are looked up.
inline CodeFormat some_by_table(Random &random) {
    const int32_t code = random.below(2) ? opsocket::IQ4 : opsocket::E2M1;
    const int64_t super = code == opsocket::IQ4 && random.below(2) ? int64_t(32) << (1 + random.below(4)) : 0;
    return {4, false, !super && random.below(2) != 0, 32, code, super};
}

// What a small float stands for, or what is looked up; of an e2m1, twice that.
inline double small_float(int32_t code, int stored) {
    if (code == opsocket::IQ4) return double(opsocket::IQ4_INTEGERS[stored]);
    const int fraction_bits = code == opsocket::E4M3FN ? 3 : 1, exponent_bits = code == opsocket::E4M3FN ? 4 : 2;
    const int least = code == opsocket::E4M3FN ? -6 : 1;  // of normal numbers' exponents
    const int fraction = stored & ((1 << fraction_bits) - 1);
    const int exponent = stored >> fraction_bits & ((1 << exponent_bits) - 1);
    if (code == opsocket::E4M3FN && (stored & 0x7f) == 0x7f) return NAN;
    const double significand = std::ldexp(double(fraction), -fraction_bits) + (exponent > 0);
    const double size = std::ldexp(significand, least + (exponent > 0 ? exponent - 1 : 0));
    return stored >> (fraction_bits + exponent_bits) ? -size : size;
}

class CodedWeight {
   public:
    const int64_t n, k;
    opsocket::Panels panels{};
    Array<int64_t> permutation;  // of columns; empty: in order

    CodedWeight(Random &random, const CodeFormat &format, int64_t n, int64_t k, bool permuted)
        : n(n), k(k), permutation(permuted ? k : 0), data_(0, 0) {
        using namespace opsocket;
        const int64_t padded = format.group ? k : (k + 31) / 32 * 32;
        panels.n = n, panels.k = padded, panels.group = format.group ? format.group : padded;
        panels.bits = format.bits, panels.has_minimum = format.minimum, panels.scale_f32 = format.scale_f32;
        panels.code = format.code, panels.super = format.super;
        panels.zero_offset = format.code == IQ4    ? 128
                             : format.code == E2M1 ? 12
                             : format.code || (format.minimum && (format.bits < 8 || random.below(2))) ? 0 : 1 << (format.bits - 1);
        data_ = Bytes(panels.count() * panels.panel_bytes(), 0);
        panels.data = data_.data();
        groups_ = padded / panels.group;
        codes_.assign(size_t(n * k), 0);
        stored_.assign(size_t(n * k), 0);
        scales_.assign(size_t(n * groups_), 0);
        minimums_.assign(size_t(n * groups_), 0);
        for (int64_t row = 0; row < panels.count() * PANEL; row++)
            for (int64_t g = 0; g < groups_; g++) {
                double scale = 0, minimum = 0;
                if (row < n) {
                    scale = put_scale(random, row, g, 0, 0.01 + 0.05 * random.uniform());
                    if (format.minimum) minimum = put_scale(random, row, g, 1, 0.3 * random.normal());
                    scales_[size_t(row * groups_ + g)] = scale, minimums_[size_t(row * groups_ + g)] = minimum;
                }
                for (int64_t j = g * panels.group; j < (g + 1) * panels.group; j++) {
                    int64_t stored = format.code ? 0 : panels.zero_offset;
                    if (row < n && j < k) stored = format.largest ? (1 << format.bits) - 1 : random.below(int64_t(1) << format.bits);
                    if (format.code == E4M3FN && (stored & 0x7f) == 0x7f && random.below(40)) stored ^= 1;  // more NaN would hide all else
                    put_code(row, j, int(stored));
                    if (row >= n || j >= k) continue;
                    stored_[size_t(row * k + j)] = uint8_t(stored);
                    codes_[size_t(row * k + j)] =
                        format.code ? small_float(format.code, int(stored)) : double(stored - panels.zero_offset);
                }
            }
        for (int64_t i = 0; i < permutation.size(); i++) permutation[i] = i;
        for (int64_t i = permutation.size() - 1; i > 0; i--)
            std::swap(permutation[i], permutation[random.below(i + 1)]);
    }

    const int64_t *order() const { return permutation.size() ? permutation.data() : nullptr; }
    // The column of x that column j of the codes meets.
    int64_t column(int64_t j) const { return permutation.size() ? permutation[j] : j; }
    int stored(int64_t row, int64_t j) const { return stored_[size_t(row * k + j)]; }  // in the panels
    double code(int64_t row, int64_t j) const { return codes_[size_t(row * k + j)]; }
    double scale(int64_t row, int64_t j) const { return scales_[size_t(row * groups_ + j / panels.group)]; }
    double minimum(int64_t row, int64_t j) const { return minimums_[size_t(row * groups_ + j / panels.group)]; }
    double value(int64_t row, int64_t j) const { return scale(row, j) * code(row, j) - minimum(row, j); }

   private:
    Bytes data_;
    int64_t groups_ = 0;
    std::vector<double> codes_, scales_, minimums_;
    std::vector<uint8_t> stored_;

    unsigned char *block_of(int64_t row, int64_t g) const {
        const int64_t block = panels.super ? panels.super : panels.group;
        const int64_t head = panels.super ? opsocket::PANEL * (panels.has_minimum ? 2 : 1) * (2 + panels.super / panels.group) : 0;
        CHECK(panels.block_bytes() == head + block / panels.group * panels.group_bytes(), "a block's bytes");
        return data_.data() + row / opsocket::PANEL * panels.panel_bytes() + g * panels.group / block * panels.block_bytes();
    }

    unsigned char *group_of(int64_t row, int64_t g) const {
        if (!panels.super) return block_of(row, g);
        const int64_t groups = panels.super / panels.group;
        return block_of(row, g) + panels.head_bytes() + g % groups * panels.group_bytes();
    }

    void put_code(int64_t row, int64_t j, int stored) {
        const int64_t within = j % panels.group, slab = panels.slab();
        unsigned char *at = group_of(row, j / panels.group) + within / slab * panels.slab_bytes();
        if (panels.bits == 5 || panels.bits == 6) {
            put_bits(at, row, within, stored & 15, 4);
            put_bits(at + slab * opsocket::PANEL / 2, row, within, stored >> 4, panels.bits - 4);
        } else {
            put_bits(at, row, within, stored, panels.bits);
        }
    }

    void put_bits(unsigned char *slab, int64_t row, int64_t within, int value, int bits) const {
        const int64_t step = within % panels.slab() / 4, lane = row % opsocket::PANEL;
        const int64_t steps = panels.slab() / 4 * bits / 8;  // of a field
        slab[(step % steps * opsocket::PANEL + lane) * 4 + within % 4] |= uint8_t(value << (step / steps * bits));
    }

    // kind 0: a scale, 1: a minimum. What is there then, about x.
    double put_scale(Random &random, int64_t row, int64_t g, int64_t kind, double x) {
        using namespace opsocket::OPSOCKET_LEVEL;
        const int64_t lane = row % opsocket::PANEL;
        if (!panels.super) {
            unsigned char *at = group_of(row, g) + panels.group / panels.slab() * panels.slab_bytes() + kind * panels.scale_bytes();
            const int32_t dtype = panels.scale_f32 ? opsocket::F32 : opsocket::F16;
            store_one(at, lane, dtype, float(x));
            return double(load_one(at, lane, dtype));
        }
        const int64_t groups = panels.super / panels.group, kinds = panels.has_minimum ? 2 : 1;
        unsigned char *unit = block_of(row, g) + kind * opsocket::PANEL * 2;
        if (g % groups == 0) store_one(unit, lane, opsocket::F16, float(x / 40));
        const int8_t code = int8_t(random.below(256) - 128);
        block_of(row, g)[(kinds * (2 + g % groups) + kind) * opsocket::PANEL + lane] = uint8_t(code);
        return double(code) * double(load_one(unit, lane, opsocket::F16));
    }
};

class FloatWeight {
   public:
    const int64_t n, k;
    const int32_t dtype;
    opsocket::Panels panels{};

    FloatWeight(Random &random, int32_t dtype, int64_t n, int64_t k)
        : n(n),
          k(k),
          dtype(dtype),
          pairs_(dtype == opsocket::BF16 ? 2 : 1),
          data_((n + opsocket::PANEL - 1) / opsocket::PANEL * ((k + pairs_ - 1) / pairs_) * pairs_ * opsocket::PANEL *
                    (dtype == opsocket::F32 ? 4 : 2),
                0) {
        panels.data = data_.data(), panels.n = n;
        for (int64_t row = 0; row < n; row++)
            for (int64_t j = 0; j < k; j++)
                opsocket::OPSOCKET_LEVEL::store_one(data_.data(), place(row, j), dtype, float(0.3 * random.normal()));
    }

    double value(int64_t row, int64_t j) const {
        return double(opsocket::OPSOCKET_LEVEL::load_one(data_.data(), place(row, j), dtype));
    }

   private:
    int64_t pairs_;
    Bytes data_;

    int64_t place(int64_t row, int64_t j) const {
        const int64_t stored = (k + pairs_ - 1) / pairs_, panel = row / opsocket::PANEL, lane = row % opsocket::PANEL;
        return ((panel * stored + j / pairs_) * opsocket::PANEL + lane) * pairs_ + j % pairs_;
    }
};

}  // namespace test
