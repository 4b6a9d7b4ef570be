// Rows of a table in panels: a code times its scale less the minimum, in f32, rounded once; NaN for what is no row.
#include "arrays.h"
#include "weights.h"

using namespace opsocket;
using test::Array, test::CodedWeight, test::CodeFormat, test::FloatWeight, test::Matrix, test::Random;

// value(id, j): column j of row `id` of the table; error: of its f32 value.
template <class Value, class Error>
static void check_rows(Random &random, Embedding command, int64_t n, int64_t k, const char *what, Value value,
                       Error error) {
    const int64_t rows = 1 + random.below(6);
    const int32_t dtype = int32_t(random.below(3));
    Array<int64_t> ids(rows);
    for (int64_t i = 0; i < rows; i++) ids[i] = random.below(n);
    ids[rows / 2] = n - 1;
    if (rows > 3) ids[0] = n, ids[1] = -1;  // no rows of the table
    Matrix y(rows, k, 5, dtype);
    command.op = OP_EMBEDDING, command.wait = 1, command.rows = rows, command.k = k, command.ids = ids.data();
    command.y = y.data(), command.y_stride = y.stride, command.dtype = dtype;
    for (int threads : {1, 2}) {
        y.clear();
        test::run(command, threads, what);
        CHECK(y.gaps_are_whole(), "%s: written between rows", what);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < k; j++) {
                const bool is_there = ids[i] >= 0 && ids[i] < n;
                const double want = is_there ? value(ids[i], j) : NAN;
                CHECK(test::near(y.at(i, j), want, is_there ? error(ids[i], j) : 0, dtype),
                      "%s, %d threads, row %d column %d: %.9g, not %.9g", what, threads, int(i), int(j), y.at(i, j),
                      want);
            }
    }
}

int main() {
    test::use_this_level();
    Random random;
    const int64_t groups[] = {16, 32, 48, 128, 0};
    for (int i = 0; i < 60; i++) {
        CodeFormat format{2 << random.below(3), random.below(2) != 0, random.below(2) != 0, groups[i % 5]};
        if (i % 6 == 3) format.code = E4M3FN, format.bits = 8, format.minimum = false;
        if (i % 6 == 0) format = test::some_by_table(random);
        if (i % 4 == 1) format = test::some_k_quant(random);
        const int64_t n = 1 + random.below(80),
                      k = format.super ? format.super * (1 + random.below(3)) : format.group ? format.group * (1 + random.below(4)) : 1 + random.below(150);
        const CodedWeight w(random, format, n, k, random.below(2) != 0);
        std::vector<int64_t> place(static_cast<size_t>(k));
        for (int64_t j = 0; j < k; j++) place[size_t(w.column(j))] = j;
        Embedding command{};
        command.weight = w.panels, command.permutation = w.order(), command.float_dtype = -1;
        check_rows(
            random, command, n, k, "codes", [&](int64_t id, int64_t j) { return w.value(id, place[size_t(j)]); },
            [&](int64_t id, int64_t j) {
                const int64_t at = place[size_t(j)];
                return (std::fabs(w.scale(id, at) * w.code(id, at)) + std::fabs(w.value(id, at))) * test::UNIT;
            });
    }
    for (int32_t dtype : {F32, F16, BF16})
        for (int64_t k : {1, 7, 64}) {
            const FloatWeight w(random, dtype, 40, k);
            Embedding command{};
            command.weight = w.panels, command.float_dtype = dtype;
            check_rows(
                random, command, 40, k, "floats", [&](int64_t id, int64_t j) { return w.value(id, j); },
                [](int64_t, int64_t) { return 0.0; });
        }
    return test::failures();
}
