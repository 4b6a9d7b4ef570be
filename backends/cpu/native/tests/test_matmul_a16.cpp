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
    enum Values { NORMAL, SPREAD, TINY, WITH_ZEROS, WITH_NAN } values = NORMAL;  // of x
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
    if (values == Shape::WITH_NAN) x.set(x.rows - 1, random.below(x.width), NAN);
}

// value(row, j): of column j of the weight; size: its largest term; column(j): the column of x that it meets.
template <class Value, class Size, class Column>
static void check_product(Random &random, MatmulA16 command, const Shape &s, const char *what, Value value, Size size,
                          Column column) {
    Matrix x = Matrix::random(random, s.rows, s.k, 3, s.x_dtype), y(s.rows, s.n, 7, s.y_dtype);
    change_values(random, x, s.values);
    Array<float> bias(s.bias ? s.n : 0);
    for (int64_t i = 0; i < bias.size(); i++) bias[i] = float(random.normal());
    command.op = OP_MATMUL, command.wait = 1, command.rows = s.rows, command.n = s.n, command.k = s.k;
    command.x = x.data(), command.x_stride = x.stride, command.y = y.data(), command.y_stride = y.stride;
    command.bias = s.bias ? bias.data() : nullptr, command.x_dtype = s.x_dtype, command.y_dtype = s.y_dtype;
    const int64_t padded = command.float_dtype < 0 ? command.weight.k : s.k;
    const bool in_place = s.x_dtype == F32 && !command.permutation && padded == s.k;
    command.workspace = in_place ? 0 : s.rows * padded * 4;  // matmul_a16.py
    for (int threads : {1, 2}) {
        y.clear();
        test::run(command, threads, what);
        CHECK(y.gaps_are_whole(), "%s, %d threads: written between rows", what, threads);
        for (int64_t row = 0; row < s.rows; row++)
            for (int64_t i = 0; i < s.n; i++) {
                double want = s.bias ? double(bias[i]) : 0, most = std::fabs(want);
                for (int64_t j = 0; j < s.k; j++) {
                    const double factor = x.at(row, column(j));
                    want += factor * value(i, j);
                    most += std::fabs(factor) * size(i, j);
                }
                const double error = most * test::UNIT * double(s.k + 8);
                CHECK(test::near(y.at(row, i), want, error, s.y_dtype),
                      "%s, %d threads, %d x %d x %d, row %d column %d: %.9g, not %.9g", what, threads, int(s.rows),
                      int(s.n), int(s.k), int(row), int(i), y.at(row, i), want);
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

static void codes(Random &random) {
    const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 25}, groups[] = {16, 32, 48, 64, 128, 256, 0};
    for (int i = 0; i < 320; i++) {
        CodeFormat format{2 << random.below(3), random.below(2) != 0, random.below(3) == 0, groups[random.below(7)]};
        if (i % 6 == 3) format.code = E4M3FN, format.bits = 8, format.minimum = false;
        if (i % 6 == 0) format = test::some_by_table(random);
        if (i % 4 == 2) format = test::some_k_quant(random);
        Shape s = some_shape(random, rows[i % 3 ? random.below(3) : random.below(12)]);
        if (random.below(2)) s.values = Shape::Values(random.below(5));
        if (s.values == Shape::SPREAD || s.values == Shape::TINY) {  // f16 has no such numbers
            if (s.x_dtype == F16) s.x_dtype = BF16;
            if (s.y_dtype == F16) s.y_dtype = F32;
        }
        if (format.group) s.k = (format.super ? format.super : format.group) * (1 + random.below(5));
        const CodedWeight w(random, format, s.n, s.k, random.below(3) == 0);
        MatmulA16 command{};
        command.weight = w.panels, command.permutation = w.order(), command.float_dtype = -1;
        char what[100];
        std::snprintf(what, sizeof what, "%d bits, groups of %d in %d%s%s%s", format.bits, int(format.group), int(format.super),
                      format.minimum ? ", minimums" : "", format.scale_f32 ? ", f32 scales" : "",
                      w.order() ? ", permuted" : "");
        check_product(
            random, command, s, what, [&](int64_t r, int64_t j) { return w.value(r, j); },
            [&](int64_t r, int64_t j) {
                const double code = w.panels.code ? std::fabs(w.code(r, j)) : w.code(r, j) + 2 * w.panels.zero_offset;
                return std::fabs(w.scale(r, j)) * code + std::fabs(w.minimum(r, j));
            },
            [&](int64_t j) { return w.column(j); });
    }
}

static void floats(Random &random) {
    for (int32_t dtype : {F32, F16, BF16})
        for (int64_t rows : {1, 2, 12, 14, 400}) {
            Shape s = some_shape(random, rows);
            if (rows == 400) s.n = 35, s.k = 20;  // more than one block of rows
            const FloatWeight w(random, dtype, s.n, s.k);
            MatmulA16 command{};
            command.weight = w.panels, command.float_dtype = dtype;
            auto value = [&](int64_t r, int64_t j) { return w.value(r, j); };
            check_product(
                random, command, s,
                dtype == F32   ? "f32"
                : dtype == F16 ? "f16"
                               : "bf16",
                value, [&](int64_t r, int64_t j) { return std::fabs(w.value(r, j)); }, [](int64_t j) { return j; });
        }
}

int main() {
    test::use_this_level();
    Random random;
    codes(random);
    floats(random);
    return test::failures();
}
