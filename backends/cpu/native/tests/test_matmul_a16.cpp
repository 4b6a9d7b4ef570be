// Products with float activations, of codes and of floats, against plain f64 sums. The bound is that of f32 sums over
// k, of codes as they are stored: with one row what the zero offset and the minimum take away is taken from the sums.
#include "arrays.h"
#include "weights.h"

using namespace opsocket;
using test::Array, test::CodedWeight, test::CodeFormat, test::FloatWeight, test::Matrix, test::Random;

struct Shape {
    int64_t rows, n, k;
    int32_t x_dtype, y_dtype;
    bool bias;
    enum Values { NORMAL, SPREAD, TINY, WITH_ZEROS, WITH_NAN, FLAT, FAR, HUGE_ONES, WITH_INFINITY } values = NORMAL;  // of x
};

// Of what digits have to be cut to: numbers of which some are far larger than those beside them, so small that powers of
// two for them leave the normal numbers, none at all, or no numbers.
static void change_values(Random &random, Matrix &x, Shape::Values values) {
    auto each = [&](auto change) {
        for (int64_t r = 0; r < x.rows; r++)
            for (int64_t i = 0; i < x.width; i++) x.set(r, i, change(x.at(r, i)));
    };
    if (values == Shape::SPREAD) each([&](double v) { return random.below(9) ? v : std::ldexp(v, int(random.below(60)) - 30); });
    if (values == Shape::TINY) {
        const int down = 80 + int(random.below(35));
        each([&](double v) { return std::ldexp(v, -down); });
    }
    if (values == Shape::WITH_ZEROS) {
        const bool all = random.below(4) == 0;
        each([&](double v) { return all || random.below(2) ? 0.0 : v; });
    }
    if (values == Shape::FLAT) each([&](double) { return 127.0; });  // 64, -128 and 0 as digits
    if (values == Shape::FAR) each([&](double v) { return random.below(2) ? v : std::ldexp(v, -100); });
    if (values == Shape::HUGE_ONES) each([&](double v) { return random.below(4) ? v : std::ldexp(v > 0 ? 1.998 : -1.998, 110); });
    if (values == Shape::WITH_INFINITY) x.set(x.rows - 1, random.below(x.width), INFINITY);
    if (values == Shape::WITH_NAN) x.set(x.rows - 1, random.below(x.width), NAN);
}

static constexpr int64_t whole_blocks(int64_t k) { return (k + 63) / 64 * 64; }

// One weight for each expert, of `counts` rows each; of a single one s.rows. value(expert, row, j): of column j of a weight;
// size: its largest term; column(expert, j): the column of x that it meets.
template <class Value, class Size, class Column>
static void check_product(Random &random, const std::vector<PanelWeight> &weights, const std::vector<int64_t> &counts,
                          int32_t float_dtype, const Shape &s, const char *what, Value value, Size size, Column column) {
    const int64_t experts = int64_t(weights.size());
    const bool grouped = experts > 1;
    Array<PanelWeight> table(experts);
    Array<int64_t> offsets(experts + 1);
    bool in_place = s.x_dtype == F32;
    for (int64_t e = offsets[0] = 0; e < experts; e++) {
        table[e] = weights[size_t(e)], offsets[e + 1] = offsets[e] + counts[size_t(e)];
        in_place = in_place && !table[e].permutation && (float_dtype >= 0 || table[e].panels.k == s.k);
    }
    const int64_t multiplied = offsets[experts];
    Matrix x = Matrix::random(random, s.rows, s.k, 3, s.x_dtype), y(s.rows, s.n, 7, s.y_dtype);
    change_values(random, x, s.values);
    Array<float> bias(s.bias ? experts * s.n : 0);
    for (int64_t i = 0; i < bias.size(); i++) bias[i] = float(random.normal());
    MatmulA16 command{};
    command.op = OP_MATMUL, command.wait = 1, command.rows = s.rows, command.n = s.n, command.k = s.k;
    command.experts = experts, command.weights = table.data(), command.offsets = grouped ? offsets.data() : nullptr;
    command.x = x.data(), command.x_stride = x.stride, command.y = y.data(), command.y_stride = y.stride;
    command.bias = s.bias ? bias.data() : nullptr, command.x_dtype = s.x_dtype, command.y_dtype = s.y_dtype;
    command.float_dtype = float_dtype;
    command.workspace = in_place ? 0 : s.rows * whole_blocks(s.k) * 4;  // matmul_a16.py
    const bool may_round = float_dtype < 0 && s.x_dtype == BF16;  // and each number by 2^-8 of itself then
    for (int run = 0; run < (may_round ? 4 : 2); run++) {
        const int threads = 1 + run % 2;
        command.bf16_weights = run / 2;
        y.clear();
        test::run(command, threads, what);
        CHECK(y.gaps_are_whole(), "%s, %d threads: written between rows", what, threads);
        for (int64_t row = 0, e = 0; row < s.rows; row++) {
            while (e < experts && row >= offsets[e + 1]) e++;
            for (int64_t i = 0; i < s.n; i++) {
                if (row >= multiplied) {
                    CHECK(std::isnan(y.at(row, i)), "%s: a row of no expert", what);
                    continue;
                }
                double want = s.bias ? double(bias[e * s.n + i]) : 0, most = std::fabs(want);
                for (int64_t j = 0; j < s.k; j++) {
                    const double factor = x.at(row, column(e, j));
                    want += factor * value(e, i, j);
                    most += std::fabs(factor) * size(e, i, j);
                }
                const double error = most * (test::UNIT * double(s.k + 8) + (command.bf16_weights ? 0x1p-8 : 0));
                CHECK(test::near(y.at(row, i), want, error, s.y_dtype),
                      "%s%s, %d threads, %d x %d x %d, row %d column %d: %.9g, not %.9g", what,
                      command.bf16_weights ? ", rounded" : "", threads, int(s.rows), int(s.n), int(s.k), int(row), int(i), y.at(row, i), want);
            }
        }
    }
}

static Shape some_shape(Random &random, int64_t rows) {
    const int64_t ns[] = {1, 15, 32, 33, 70};
    return {rows,
            ns[random.below(5)],
            1 + random.below(300),
            int32_t(random.below(3)),
            int32_t(random.below(3)),
            random.below(2) != 0};
}

// Rows of codes against one weight, or some against each of several.
static void check_codes(Random &random, const CodeFormat &format, Shape s, std::vector<int64_t> counts, bool permuted) {
    if (s.values == Shape::SPREAD || s.values == Shape::TINY || s.values == Shape::FAR || s.values == Shape::HUGE_ONES) {  // f16 has no such numbers
        if (s.x_dtype == F16) s.x_dtype = BF16;
        if (s.y_dtype == F16) s.y_dtype = F32;
    }
    if (format.group) s.k = (format.super ? format.super : format.group) * (1 + random.below(5));
    std::vector<CodedWeight> weights;
    std::vector<PanelWeight> table;
    for (size_t e = 0; e < counts.size(); e++) {
        CodeFormat own = format;
        if (e % 3 == 1 && own.minimum && !own.super && own.bits < 5) own.bits = 8;  // packing picks what the values fit
        weights.emplace_back(random, own, s.n, s.k, permuted && e % 3 != 2);
    }
    for (const CodedWeight &w : weights) table.push_back({w.panels, w.order()});
    char what[120];
    std::snprintf(what, sizeof what, "%d bits, groups of %d in %d%s%s%s, %d experts", format.bits, int(format.group),
                  int(format.super), format.minimum ? ", minimums" : "", format.scale_f32 ? ", f32 scales" : "",
                  permuted ? ", permuted" : "", int(counts.size()));
    check_product(
        random, table, counts, -1, s, what,
        [&](int64_t e, int64_t r, int64_t j) { return weights[size_t(e)].value(r, j); },
        [&](int64_t e, int64_t r, int64_t j) {
            const CodedWeight &w = weights[size_t(e)];
            const double code = w.panels.code ? std::fabs(w.code(r, j)) : w.code(r, j) + 2 * w.panels.zero_offset;
            return std::fabs(w.scale(r, j)) * code + std::fabs(w.minimum(r, j));
        },
        [&](int64_t e, int64_t j) { return weights[size_t(e)].column(j); });
}

static CodeFormat some_format(Random &random, int i) {
    const int64_t groups[] = {16, 32, 48, 64, 128, 256, 0};
    if (i % 6 == 0) return test::some_by_table(random);
    if (i % 4 == 2) return test::some_k_quant(random);
    CodeFormat format{2 << random.below(3), random.below(2) != 0, random.below(3) == 0, groups[random.below(7)]};
    if (i % 6 == 3) format.code = E4M3FN, format.bits = 8, format.minimum = false;
    return format;
}

static void codes(Random &random) {
    const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 25};
    for (int i = 0; i < 320; i++) {
        const CodeFormat format = some_format(random, i);
        Shape s = some_shape(random, rows[i % 3 ? random.below(3) : random.below(12)]);
        if (random.below(2)) s.values = Shape::Values(random.below(5));
        check_codes(random, format, s, {s.rows}, random.below(3) == 0);
    }
}

static void check_floats(Random &random, int32_t dtype, const Shape &s, const std::vector<int64_t> &counts);

// So many that some level has tiles for them: whole ones and parts of one, of long and short groups.
static void many_rows(Random &random) {
    const Shape::Values values[] = {Shape::NORMAL, Shape::SPREAD, Shape::TINY, Shape::WITH_ZEROS, Shape::WITH_NAN, Shape::FAR, Shape::HUGE_ONES};
    const int64_t rows[] = {11, 16, 17, 32, 45};
    for (int i = 0; i < 126; i++) {
        Shape s = some_shape(random, rows[random.below(5)]);
        s.values = values[i % 7];
        check_codes(random, some_format(random, i / 7), s, {s.rows}, random.below(3) == 0);
    }
    for (int i = 0; i < 48; i++) {
        Shape s = some_shape(random, rows[random.below(5)] + 2);
        s.values = i % 8 == 7 ? Shape::WITH_INFINITY : values[i % 8];
        if (i % 8 != 0 && i % 8 != 3 && i % 8 != 4 && i % 8 != 7) {
            if (s.x_dtype == F16) s.x_dtype = BF16;
            if (s.y_dtype == F16) s.y_dtype = F32;
        }
        if (i % 16 > 12) s.k += 600;  // several steps
        check_floats(random, i % 3 ? i % 2 ? F16 : BF16 : F32, s, {s.rows});
    }
}

// So long that some level has not all of K at a time.
static void long_rows(Random &random) {
    check_floats(random, BF16, {17, 33, 7001, F32, F32, true}, {17});
    check_floats(random, BF16, {35, 33, 12000, BF16, F32, true}, {35});
    check_floats(random, BF16, {35, 33, 12002, BF16, BF16, true}, {35});
    check_floats(random, F16, {35, 70, 7000, F16, BF16, false}, {35});
    check_codes(random, {4, true, false, 0}, {18, 33, 7008, F32, F32, true}, {18}, true);
    check_codes(random, {8, false, true, 0}, {35, 33, 12001, BF16, F16, true}, {20, 15}, true);
    check_codes(random, {4, true, false, 0}, {17, 33, 7008, F32, BF16, true}, {17}, false);
    check_codes(random, {4, false, false, 0}, {17, 33, 40000, F32, BF16, true}, {17}, false);
}

static std::vector<int64_t> some_counts(Random &random) {
    std::vector<int64_t> counts;
    for (int64_t e = 2 + random.below(5); e > 0; e--)
        counts.push_back(random.below(3) == 0 ? 0 : random.below(4) ? 1 + random.below(4) : random.below(40));
    return counts;
}

static void grouped_products(Random &random) {
    for (int i = 0; i < 120; i++) {
        const std::vector<int64_t> counts = some_counts(random);
        Shape s = some_shape(random, random.below(2));  // that no expert has
        for (int64_t count : counts) s.rows += count;
        if (random.below(2) && s.rows) s.values = Shape::Values(random.below(5));
        check_codes(random, some_format(random, i), s, counts, random.below(3) == 0);
    }
    check_codes(random, {4, false, false, 32}, {140, 70, 0, BF16, F32, true}, {99, 20, 21}, false);  // rows of each thread's own
}

static void check_floats(Random &random, int32_t dtype, const Shape &s, const std::vector<int64_t> &counts) {
    std::vector<FloatWeight> weights;
    std::vector<PanelWeight> table;
    for (size_t e = 0; e < counts.size(); e++) weights.emplace_back(random, dtype, s.n, s.k);
    for (const FloatWeight &w : weights) table.push_back({w.panels, nullptr});
    check_product(
        random, table, counts, dtype, s,
        dtype == F32   ? "f32"
        : dtype == F16 ? "f16"
                       : "bf16",
        [&](int64_t e, int64_t r, int64_t j) { return weights[size_t(e)].value(r, j); },
        [&](int64_t e, int64_t r, int64_t j) { return std::fabs(weights[size_t(e)].value(r, j)); },
        [](int64_t, int64_t j) { return j; });
}

// Panels of many experts in the shares of two threads: few rows for each, as digits, in registers or widened, and now and then
// more for one, whose panels are for who comes first.
static void shares_of_experts(Random &random) {
    for (int i = 0; i < 24; i++) {
        std::vector<int64_t> counts;
        for (int64_t e = 2 + random.below(20); e > 0; e--) counts.push_back(random.below(i % 4 == 3 ? 12 : 4));
        if (i % 4 == 1) counts[size_t(random.below(int64_t(counts.size())))] = 30;
        Shape s{0, 1 + random.below(330), 64, F32, F32, true};
        for (int64_t count : counts) s.rows += count;
        if (i % 3) check_codes(random, {4, i % 2 != 0, false, 32}, s, counts, false);
        else check_floats(random, i % 2 ? BF16 : F32, s, counts);
    }
}

static void floats(Random &random) {
    for (int32_t dtype : {F32, F16, BF16}) {
        for (int64_t rows : {1, 2, 3, 5, 8, 12, 14, 400}) {
            Shape s = some_shape(random, rows);
            if (rows == 400) s.n = 35, s.k = 20;  // more than one block of rows
            check_floats(random, dtype, s, {rows});
        }
        for (int i = 0; i < 6; i++) {
            const std::vector<int64_t> counts = some_counts(random);
            Shape s = some_shape(random, random.below(2));
            for (int64_t count : counts) s.rows += count;
            check_floats(random, dtype, s, counts);
        }
    }
}

// Where sums of digits are largest: some levels have 16 bits for those of some steps.
static void largest_sums(Random &random) {
    const CodeFormat formats[] = {{4, false, false, 32}, {5, true, false, 32}, {5, true, false, 32, INTEGERS, 256},
                                  {6, false, false, 16, INTEGERS, 256}, {8, false, false, 32}};
    for (CodeFormat format : formats)
        for (int64_t rows : {1, 2, 3}) {
            format.largest = true;
            check_codes(random, format, {rows, 40, 0, F32, F32, false, Shape::FLAT}, {rows}, false);
        }
}

int main() {
    test::use_this_level();
    Random random;
    codes(random);
    many_rows(random);
    long_rows(random);
    largest_sums(random);
    grouped_products(random);
    shares_of_experts(random);
    floats(random);
    return test::failures();
}
