// Products with int8 activations, and the quantizer by itself, against plain sums: x as codes by the pinned rule, sums
// of codes exact, the rest in f64. The bound is that of f32 sums over the pieces that share both scales.
#include "arrays.h"
#include "matmul_a8_rows.h"
#include "weights.h"

using namespace opsocket;
using test::Array, test::CodedWeight, test::CodeFormat, test::Matrix, test::Random;

struct Codes {
    std::vector<int> codes;
    std::vector<float> scales;  // of each piece of `group` columns
};

static Codes quantize(const std::vector<float> &x, int64_t group) {
    Codes result{std::vector<int>(x.size()), {}};
    for (size_t first = 0; first < x.size(); first += size_t(group)) {
        float most = 0;
        const size_t last = std::min(x.size(), first + size_t(group));
        for (size_t i = first; i < last; i++)
            if (!(std::fabs(x[i]) <= most) && most == most) most = std::fabs(x[i]);  // a NaN stays
        const float scale = most / 127.0f;
        for (size_t i = first; i < last; i++) {
            const float quotient = x[i] / scale;
            const float rounded = std::nearbyint(quotient);
            result.codes[i] =
                scale == 0 || quotient != quotient ? 0 : int(std::fmin(std::fmax(rounded, -127.0f), 127.0f));
        }
        result.scales.push_back(scale);
    }
    return result;
}

struct Case {
    CodeFormat format;
    int32_t x_group, x_dtype, y_dtype;
    int64_t rows, n, k;
    bool permuted, bias;
    int64_t pass;  // rows of x that the workspace has room for; 0: all
    bool flat = false;  // each row of x is one number, so that its codes are 127 or -127

    const char *text() const {
        static char buffer[200];
        std::snprintf(buffer, sizeof buffer, "%d bits, groups of %d in %d%s%s, x %d by %d, %d of %d x %d%s%s, passes of %d",
                      format.bits, int(format.group), int(format.super), format.minimum ? " with minimums" : "",
                      format.scale_f32 ? ", f32 scales" : "", x_dtype, x_group, int(rows), int(n), int(k),
                      permuted ? ", permuted" : "", bias ? ", bias" : "", int(pass));
        return buffer;
    }
};

// One output and the bound of its error.
static void expect(const CodedWeight &w, int64_t row, const Codes &x, int64_t x_group, double &y, double &error) {
    constexpr int64_t piece = 16;  // of which all groups are made
    double size = 0;
    y = 0;
    for (int64_t first = 0; first < w.k; first += piece) {
        int64_t codes = 0, sum = 0;
        for (int64_t j = first; j < std::min(w.k, first + piece); j++) {
            codes += w.code(row, j) * x.codes[size_t(j)];
            sum += x.codes[size_t(j)];
        }
        const double scale = x.scales[size_t(x_group ? first / x_group : 0)];
        y += (w.scale(row, first) * double(codes) - w.minimum(row, first) * double(sum)) * scale;
        size +=
            (std::fabs(w.scale(row, first) * double(codes)) + std::fabs(w.minimum(row, first) * double(sum))) * scale;
    }
    error = size * test::UNIT * (2 * double(w.k / piece + 1) + 8);
}

static void check_case(Random &random, const Case &c, const std::vector<int64_t> &counts) {
    const int64_t experts = int64_t(counts.size());
    std::vector<CodedWeight> weights;
    Array<PanelWeight> table(experts);
    Array<int64_t> offsets(experts + 1);
    offsets[0] = 0;
    for (int64_t e = 0; e < experts; e++) {
        CodeFormat format = c.format;
        if (e % 3 == 1 && format.minimum && !format.super) format.bits = 8;  // packing picks what the values fit
        weights.emplace_back(random, format, c.n, c.k, c.permuted);
        offsets[e + 1] = offsets[e] + counts[size_t(e)];
    }
    for (int64_t e = 0; e < experts; e++) table[e] = {weights[size_t(e)].panels, weights[size_t(e)].order()};
    const bool grouped = experts > 1;
    const int64_t multiplied = grouped ? offsets[experts] : c.rows;
    Matrix x = Matrix::random(random, c.rows, c.k, 5, c.x_dtype), y(c.rows, c.n, 3, c.y_dtype);
    for (int64_t i = 0; c.flat && i < c.rows * c.k; i++) x.set(i / c.k, i % c.k, i / c.k % 2 ? -3 : 3);
    Array<float> bias(c.bias ? experts * c.n : 0);
    for (int64_t i = 0; i < bias.size(); i++) bias[i] = float(random.normal());
    const int64_t padded = (c.k + 63) / 64 * 64, row_bytes = 2 * padded + 3 * (padded / 16 + 16) * 4 + 128;  // matmul_a8.py
    MatmulA8 command{};
    command.op = OP_MATMUL_A8, command.wait = 1,
    command.workspace = (c.pass ? c.pass : std::max<int64_t>(c.rows, 1)) * row_bytes;
    command.rows = c.rows, command.n = c.n, command.k = c.k, command.experts = experts;
    command.x = x.data(), command.x_stride = x.stride, command.weights = table.data();
    command.offsets = grouped ? offsets.data() : nullptr, command.bias = c.bias ? bias.data() : nullptr;
    command.y = y.data(), command.y_stride = y.stride;
    command.x_dtype = c.x_dtype, command.y_dtype = c.y_dtype, command.x_group = c.x_group;
    for (int threads : {1, 2}) {
        y.clear();
        test::run(command, threads, c.text());
        CHECK(y.gaps_are_whole(), "%s, %d threads: written between rows", c.text(), threads);
        for (int64_t row = 0, e = 0; row < c.rows; row++) {
            while (grouped && e < experts && row >= offsets[e + 1]) e++;
            if (row >= multiplied) {
                for (int64_t j = 0; j < c.n; j++) CHECK(std::isnan(y.at(row, j)), "%s: a row of no expert", c.text());
                continue;
            }
            const CodedWeight &w = weights[size_t(e)];
            std::vector<float> values;
            for (int64_t j = 0; j < c.k; j++) values.push_back(float(x.at(row, w.column(j))));
            const Codes codes = quantize(values, c.x_group ? c.x_group : c.k);
            for (int64_t j = 0; j < c.n; j++) {
                double want, error;
                expect(w, j, codes, c.x_group, want, error);
                const double add = c.bias ? double(bias[e * c.n + j]) : 0;
                error += std::fabs(want) * 4 * test::UNIT;
                CHECK(test::near(y.at(row, j), want + add, error, c.y_dtype),
                      "%s, %d threads, row %d column %d: %.9g, not %.9g", c.text(), threads, int(row), int(j),
                      y.at(row, j), want + add);
            }
        }
    }
}

static CodeFormat some_format(Random &random) {
    if (random.below(3) == 0) return test::some_k_quant(random);
    if (random.below(6) == 0) return test::some_by_table(random);
    const int64_t groups[] = {16, 32, 48, 64, 128, 544, 1024, 0};
    CodeFormat format{2 << random.below(3), random.below(2) != 0, random.below(3) == 0, groups[random.below(8)]};
    return format;
}

static int64_t some_k(Random &random, const CodeFormat &format) {
    if (!format.group) return 1 + random.below(random.below(3) ? 200 : 1200);
    if (format.super) return format.super * (1 + random.below(5));
    return format.group * (1 + random.below(format.group > 512 ? 2 : 5));
}

static void products(Random &random) {
    const int64_t rows[] = {1, 2, 3, 4, 6, 8, 11, 16, 17, 50}, ns[] = {1, 31, 32, 33, 70};
    for (int i = 0; i < 180; i++) {
        Case c{some_format(random),
               random.below(2) ? 32 : 0,
               int32_t(random.below(3)),
               int32_t(random.below(3)),
               rows[i % 10],
               ns[random.below(5)],
               0,
               false,
               random.below(2) != 0,
               0};
        c.k = some_k(random, c.format);
        c.permuted = !c.x_group && random.below(3) == 0;
        if (random.below(4) == 0) c.pass = 1 + random.below(3);
        check_case(random, c, {c.rows});
    }
    // Sums of whole rows that do not fit one tile of codes, of few rows and of many.
    for (int bits : {2, 4, 8})
        for (int64_t count : {1, 6, 20})
            check_case(random, {{bits, false, false, 0}, 0, F32, F32, count, 40, 1100, false, true, 0}, {count});
}

// Where sums are largest: some levels have 16 bits for those of some steps.
static void largest_sums(Random &random) {
    const CodeFormat formats[] = {{4, false, false, 32}, {4, true, false, 32}, {5, true, false, 32},
                                  {5, true, false, 32, INTEGERS, 256}, {6, false, false, 16, INTEGERS, 256}, {8, false, false, 32}};
    for (CodeFormat format : formats)
        for (int64_t rows : {1, 2, 7, 20}) {
            format.largest = true;
            check_case(random, {format, 32, F32, F32, rows, 40, 512, false, false, 0, true}, {rows});
        }
}

// So many rows that each of two threads multiplies its own: in one pass, and where the workspace holds fewer, in two such
// passes and one of so few that panels are shared.
static void own_rows(Random &random) {
    for (int64_t pass : {0, 300})
        for (bool minimums : {false, true})
            check_case(random, {{4, minimums, false, 32}, 32, BF16, F32, 700, 70, 160, false, true, pass}, {700});
}

// Rows as long as refusals.py lets them be: a thread's own memory holds one, its codes and its sums.
static void longest_rows(Random &random) {
    for (int bits : {4, 8})
        for (int64_t count : {1, 3, 9})
            check_case(random, {{bits, true, true, 16}, 32, F16, F32, count, 2, 1 << 18, false, true, 0}, {count});
}

static void grouped_products(Random &random) {
    for (int i = 0; i < 45; i++) {
        Case c{some_format(random),
               random.below(2) ? 32 : 0,
               int32_t(random.below(3)),
               int32_t(random.below(3)),
               0,
               1 + random.below(70),
               0,
               random.below(4) == 0,
               random.below(2) != 0,
               0};
        c.k = some_k(random, c.format);
        if (c.x_group) c.permuted = false;
        std::vector<int64_t> counts;
        for (int64_t e = 2 + random.below(4); e > 0; e--) counts.push_back(random.below(3) ? random.below(14) : 0);
        for (int64_t count : counts) c.rows += count;
        c.rows += random.below(2);  // that no expert has
        if (random.below(3) == 0) c.pass = 1 + random.below(4);
        check_case(random, c, counts);
    }
}

// Panels of many experts in the shares of two threads: few rows for each, now and then many for one, or for all.
static void shares_of_experts(Random &random) {
    for (int i = 0; i < 24; i++) {
        Case c{{4, i % 2 != 0, false, 32}, i % 3 ? 32 : 0, F32, F32, 0, 1 + random.below(330), 64, false, true, 0};
        std::vector<int64_t> counts;
        for (int64_t e = 2 + random.below(20); e > 0; e--) counts.push_back(random.below(4) + (i % 8 == 7 ? 70 : 0));
        if (i % 4 == 3) counts[size_t(random.below(int64_t(counts.size())))] += 150;
        for (int64_t count : counts) c.rows += count;
        check_case(random, c, counts);
    }
}

static void quantizer(Random &random) {
    for (int64_t k : {1, 15, 16, 17, 64, 100, 130})
        for (int32_t dtype : {F32, F16, BF16}) {
            const int64_t rows = 6;
            Matrix x = Matrix::random(random, rows, k, 2, dtype);
            for (int64_t i = 0; i < k; i++)
                x.set(1, i, 0), x.set(2, i, i % 2 ? 0.5 : 127), x.set(3, i, 1e-44 * double(i));
            x.set(4, k / 2, NAN), x.set(5, k / 2, INFINITY);
            Array<int8_t> codes(rows * k);
            Array<float> scales(rows);
            QuantizeActivation command{};
            command.op = OP_QUANTIZE_ACTIVATION, command.wait = 1, command.rows = rows, command.k = k;
            command.x = x.data(), command.x_stride = x.stride, command.x_dtype = dtype;
            command.codes = codes.data(), command.scale = scales.data();
            for (int threads : {1, 2}) {
                std::memset(codes.data(), 0x55, size_t(codes.size()));
                test::run(command, threads, "quantize_activation");
                for (int64_t row = 0; row < rows; row++) {
                    std::vector<float> values;
                    for (int64_t i = 0; i < k; i++) values.push_back(float(x.at(row, i)));
                    const Codes want = quantize(values, k);
                    CHECK(test::ulps(scales[row], want.scales[0]) == 0, "k %d row %d: scale %g, not %g", int(k),
                          int(row), scales[row], want.scales[0]);
                    for (int64_t i = 0; i < k; i++)
                        CHECK(codes[row * k + i] == want.codes[size_t(i)], "k %d row %d column %d: %d, not %d", int(k),
                              int(row), int(i), codes[row * k + i], want.codes[size_t(i)]);
                }
            }
        }
}

// Groups of 32 columns beside each other, each with values that one way of dividing does not serve; in bf16 too.
static void quantizer_of_groups(Random &random, bool in_bf16) {
    using namespace OPSOCKET_LEVEL;
    const int64_t before = 3;  // numbers that are not asked about
    for (int64_t k : {64, 128, 192, 576})
        for (int turn = 0; turn < 20; turn++) {
            std::vector<float> x(size_t(k), 0.0f);
            for (int64_t i = 0; i < k; i++) {
                const double value = random.normal();
                const int64_t kind = (i / 32 + turn) % 20;
                const double kinds[] = {value,        0,           i % 2 ? 0.5 : 127, 1e-44 * double(i % 32),
                                        1e30 * value, 1e-30 * value};
                x[size_t(i)] = float(kinds[kind < 6 ? kind : 0]);
                if (kind == 6 && i % 32 == 7) x[size_t(i)] = NAN;
                if (kind == 7 && i % 32 == 9) x[size_t(i)] = INFINITY;
            }
            std::vector<uint16_t> half(size_t(before + k), 0x7f80);
            for (int64_t i = 0; i < k && in_bf16; i++) {
                uint32_t bits;
                std::memcpy(&bits, &x[size_t(i)], 4);
                half[size_t(before + i)] = uint16_t(bits >> 16);
                bits &= 0xffff0000u;
                std::memcpy(&x[size_t(i)], &bits, 4);
            }
            std::vector<int8_t> codes(size_t(k), 0x55);
            std::vector<float> scales(size_t(k / 32 + 2));
            std::vector<int32_t> sums(size_t(k / 32 + 2));
            std::vector<float> inverses(size_t(k / 32 + 16));
            auto quantize_as = [&](auto type, const void *from, int64_t first) {
                constexpr int32_t T = decltype(type)::value;
                const bool extreme = scales_by_32<T>(from, first, k, scales.data(), inverses.data());
                codes_by_32<T>(from, first, k, scales.data(), inverses.data(), extreme, codes.data());
            };
            if (in_bf16) quantize_as(std::integral_constant<int32_t, BF16>{}, half.data(), before);
            else quantize_as(std::integral_constant<int32_t, F32>{}, x.data(), 0);
            sums_of_32(codes.data(), k, sums.data());
            const Codes want = quantize(x, 32);
            for (int64_t i = 0; i < k; i++)
                CHECK(codes[size_t(i)] == want.codes[size_t(i)], "k %d turn %d column %d: %d, not %d", int(k), turn,
                      int(i), codes[size_t(i)], want.codes[size_t(i)]);
            for (int64_t g = 0; g < k / 32; g++) {
                int sum = 0;
                for (int64_t i = 32 * g; i < 32 * (g + 1); i++) sum += want.codes[size_t(i)];
                CHECK(test::ulps(scales[size_t(g)], want.scales[size_t(g)]) == 0,
                      "k %d turn %d group %d: scale %g, not %g", int(k), turn, int(g), scales[size_t(g)],
                      want.scales[size_t(g)]);
                CHECK(sums[size_t(g)] == sum, "k %d turn %d group %d: sum %d, not %d", int(k), turn, int(g),
                      sums[size_t(g)], sum);
            }
        }
}

int main() {
    test::use_this_level();
    Random random;
    quantizer(random);
    quantizer_of_groups(random, false);
    quantizer_of_groups(random, true);
    products(random);
    largest_sums(random);
    own_rows(random);
    longest_rows(random);
    grouped_products(random);
    shares_of_experts(random);
    return test::failures();
}
