// Sums, gated activation, norms, rotary embedding, rows and merged states, against f64. Every result is
// rounded once, so that bounds are of the f32 arithmetic before that.
#include "arrays.h"

using namespace opsocket;
using test::Array, test::Matrix, test::Random, test::UNIT;

constexpr int64_t WIDTHS[] = {1, 3, 16, 33, 64, 100, 259, 2048, 4100};

static void check_rows(const char *what, const Matrix &y, int64_t row, int64_t i, double want, double error) {
    CHECK(test::near(y.at(row, i), want, error, y.dtype), "%s, dtype %d, %d x %d, row %d column %d: %.9g, not %.9g",
          what, y.dtype, int(y.rows), int(y.width), int(row), int(i), y.at(row, i), want);
}

static void add_and_silu_mul(Random &random) {
    for (int64_t width : WIDTHS)
        for (int32_t dtype : {F32, F16, BF16}) {
            const int64_t rows = 1 + random.below(4);
            const Matrix a = Matrix::random(random, rows, width, 3, dtype, 4),
                         b = Matrix::random(random, rows, width, 0, dtype);
            Matrix y(rows, width, 2, dtype);
            Add add{};
            add.op = OP_ADD, add.wait = 1, add.rows = rows, add.width = width, add.dtype = dtype;
            add.a = a.data(), add.a_stride = a.stride, add.b = b.data(), add.b_stride = b.stride;
            add.y = y.data(), add.y_stride = y.stride;
            SiluMul silu{};
            silu.op = OP_SILU_MUL, silu.wait = 1, silu.rows = rows, silu.width = width, silu.dtype = dtype;
            silu.gate = a.data(), silu.gate_stride = a.stride, silu.up = b.data(), silu.up_stride = b.stride;
            silu.y = y.data(), silu.y_stride = y.stride;
            for (int threads : {1, 2}) {
                y.clear();
                test::run(add, threads, "add");
                CHECK(y.gaps_are_whole(), "add has written between rows");
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < width; i++)
                        check_rows("add", y, r, i, double(float(a.at(r, i) + b.at(r, i))), 0);
                y.clear();
                test::run(silu, threads, "silu_mul");
                CHECK(y.gaps_are_whole(), "silu_mul has written between rows");
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < width; i++) {
                        const double want = a.at(r, i) / (1 + std::exp(-a.at(r, i))) * b.at(r, i);
                        check_rows("silu_mul", y, r, i, want, std::fabs(want) * 8 * UNIT);
                    }
            }
        }
}

static void norms(Random &random) {
    for (int64_t width : WIDTHS)
        for (int32_t dtype : {F32, F16, BF16})
            for (int64_t heads : {1, 3}) {
                const int64_t rows = 1 + random.below(4);
                // Tiny: numbers whose squares are hardly normal, and nothing beside them.
                const bool joins = heads == 1 && random.below(2),
                           tiny = dtype != F16 && width >= 16 && random.below(2);
                const double size = tiny ? 1e-19 : 1;
                const Matrix x = Matrix::random(random, rows, heads * width, 3, dtype, size),
                             residual = Matrix::random(random, rows, width, 1, dtype, size);
                Matrix y(rows, heads * width, 2, dtype), sum(rows, width, 0, dtype);
                Array<float> weight(width);
                for (int64_t i = 0; i < width; i++) weight[i] = float(random.normal());
                RMSNorm command{};
                command.op = OP_RMS_NORM, command.wait = 1, command.rows = rows, command.heads = heads,
                command.width = width;
                command.x = x.data(), command.x_stride = x.stride, command.y = y.data(), command.y_stride = y.stride;
                if (joins)
                    command.residual = residual.data(), command.residual_stride = residual.stride,
                    command.sum = sum.data();
                command.weight = weight.data(), command.eps = tiny ? 0 : 1e-5, command.dtype = dtype;
                for (int threads : {1, 2}) {
                    y.clear(), sum.clear();
                    test::run(command, threads, "rms_norm");
                    CHECK(y.gaps_are_whole(), "rms_norm has written between rows");
                    for (int64_t i = 0; i < rows * heads; i++) {
                        const int64_t r = i / heads, first = i % heads * width;
                        double squares = 0;
                        std::vector<double> values;
                        for (int64_t j = 0; j < width; j++) {
                            double v = x.at(r, first + j);
                            if (joins) {
                                check_rows("residual sum", sum, r, j, double(float(v + residual.at(r, j))), 0);
                                v = sum.at(r, j);
                            }
                            values.push_back(v), squares += v * v;
                        }
                        const double scale = 1 / std::sqrt(squares / double(width) + command.eps);
                        for (int64_t j = 0; j < width; j++) {
                            const double want = values[size_t(j)] * scale * double(weight[j]);
                            check_rows("rms_norm", y, r, first + j, want,
                                       std::fabs(want) * UNIT * (double(width) / 8 + 8));
                        }
                    }
                }
            }
}

static void rotary_embedding(Random &random) {
    for (int i = 0; i < 60; i++) {
        const int64_t rows = 1 + random.below(5), heads = 1 + random.below(3), dims[] = {2, 6, 16, 32, 40, 64, 128};
        const int64_t rotary = i == 0 ? 1 << 16 : dims[random.below(7)];  // at most: refusals.py
        const int64_t dim = rotary + (random.below(2) ? 0 : 1 + random.below(20)), half = rotary / 2;
        const int32_t dtype = int32_t(random.below(3));
        const bool interleaved = random.below(2), has_factors = random.below(3) == 0, in_place = random.below(4) == 0;
        const int64_t turn = interleaved ? rotary : half, known = 7;
        const Matrix x = Matrix::random(random, rows, heads * dim, 3, dtype);
        Matrix copy(rows, heads * dim, 3, dtype), y(rows, heads * dim, 2, dtype), &out = in_place ? copy : y;
        Array<int64_t> positions(rows);
        for (int64_t r = 0; r < rows; r++) positions[r] = random.below(2) ? random.below(known) : random.below(100000);
        Array<double> frequencies(half);
        Array<float> factors(has_factors ? half : 0), turns(known * 2 * turn), known_factors(has_factors ? half : 0);
        Array<uint8_t> state(known, 0);
        for (int64_t j = 0; j < half; j++) frequencies[j] = std::pow(10000.0, -double(j) / double(half));
        for (int64_t j = 0; j < factors.size(); j++) factors[j] = float(1 + random.uniform());
        RopeTable table{known, turns.data(), state.data(), has_factors ? known_factors.data() : nullptr};
        Rope command{};
        command.op = OP_ROPE, command.wait = 1, command.rows = rows, command.heads = heads, command.head_dim = dim;
        command.rotary_dim = rotary, command.x = in_place ? copy.data() : x.data(), command.x_stride = x.stride;
        command.y = out.data(), command.y_stride = out.stride, command.positions = positions.data();
        command.frequencies = frequencies.data(), command.factors = has_factors ? factors.data() : nullptr;
        command.table = &table, command.magnitude = 1.1, command.interleaved = interleaved, command.dtype = dtype;
        for (int threads : {1, 2, 2, 1}) {
            out.clear();
            for (int64_t r = 0; in_place && r < rows; r++)
                for (int64_t j = 0; j < x.width; j++) copy.set(r, j, x.at(r, j));
            test::run(command, threads, "rope");
            CHECK(out.gaps_are_whole(), "rope has written between rows");
            for (int64_t r = 0; r < rows; r++)
                for (int64_t h = 0; h < heads; h++)
                    for (int64_t d = 0; d < dim; d++) {
                        const int64_t at = h * dim + d, pair = interleaved ? d / 2 : d % half;
                        if (d >= rotary) {
                            CHECK(out.at(r, at) == x.at(r, at), "rope has changed dim %d of %d", int(d), int(dim));
                            continue;
                        }
                        const bool first = interleaved ? d % 2 == 0 : d < half;
                        const int64_t partner = interleaved ? h * dim + (d ^ 1) : first ? at + half : at - half;
                        const double angle =
                            double(positions[r]) * frequencies[pair] / (has_factors ? double(factors[pair]) : 1.0);
                        const double cosine = std::cos(angle) * 1.1, sine = std::sin(angle) * 1.1;
                        const double a = x.at(r, at) * cosine, b = x.at(r, partner) * sine;
                        check_rows("rope", out, r, at, first ? a - b : a + b,
                                   (std::fabs(a) + std::fabs(b)) * 3 * UNIT + 1e-10);
                    }
            if (has_factors) factors[0] += 0.25f;  // the table is of other factors now
        }
    }
}

static void rows_by_number(Random &random) {
    for (int64_t width : {1, 7, 64})
        for (int32_t dtype : {F32, F16, BF16}) {
            const Matrix x = Matrix::random(random, 5, width, 3, dtype);
            Matrix y(7, width, 2, dtype);
            Array<int64_t> ids(std::vector<int64_t>{4, 0, -1, 5, 2, 2, INT64_MIN});
            TakeRows command{};
            command.op = OP_TAKE_ROWS, command.wait = 1, command.rows = 7, command.width = width, command.height = 5;
            command.x = x.data(), command.x_stride = x.stride, command.ids = ids.data();
            command.y = y.data(), command.y_stride = y.stride, command.dtype = dtype;
            for (int threads : {1, 2}) {
                y.clear();
                test::run(command, threads, "take_rows");
                for (int64_t r = 0; r < 7; r++)
                    for (int64_t i = 0; i < width; i++)
                        check_rows("take_rows", y, r, i, ids[r] >= 0 && ids[r] < 5 ? x.at(ids[r], i) : NAN, 0);
            }
        }
}

static void merged_states(Random &random) {
    for (int i = 0; i < 40; i++) {
        const int64_t parts = 1 + random.below(4), rows = 1 + random.below(4), heads = 1 + random.below(3),
                      dims[] = {1, 7, 16, 40, 128};
        const int64_t dim = i == 0 ? 300000 : dims[random.below(5)];  // a thread's own memory holds less
        const int32_t in = int32_t(random.below(3)), to = int32_t(random.below(3));
        Matrix outs = Matrix::random(random, parts * rows, heads * dim, 0, in), y(rows, heads * dim, 3, to);
        Array<float> lses(parts * rows * heads), lse(rows * heads);
        for (int64_t p = 0; p < lses.size(); p++) lses[p] = float(5 * random.normal());
        for (int64_t p = 0; p < parts; p++) {
            // The last head sees no key in some parts, and the first row in none: what their output holds is not read.
            if (random.below(2)) lses[p * rows * heads + heads - 1] = -INFINITY;
            lses[p * rows * heads] = -INFINITY;
            for (int64_t d = 0; d < heads * dim; d++)
                if (lses[p * rows * heads + d / dim] == -INFINITY) outs.set(p * rows, d, NAN);
        }
        MergeStates command{};
        command.op = OP_MERGE_STATES, command.wait = 1, command.parts = parts, command.rows = rows,
        command.heads = heads;
        command.head_dim = dim, command.outs = outs.data(), command.outs_row_stride = outs.stride;
        command.outs_part_stride = rows * outs.stride, command.lses = lses.data(),
        command.lses_part_stride = rows * heads;
        command.y = y.data(), command.y_stride = y.stride, command.lse = lse.data(), command.in_dtype = in,
        command.out_dtype = to;
        for (int threads : {1, 2}) {
            y.clear();
            test::run(command, threads, "merge_states");
            CHECK(y.gaps_are_whole(), "merge_states has written between rows");
            for (int64_t r = 0; r < rows; r++)
                for (int64_t h = 0; h < heads; h++) {
                    double top = -INFINITY, total = 0;
                    auto part = [&](int64_t p) { return double(lses[(p * rows + r) * heads + h]); };
                    for (int64_t p = 0; p < parts; p++) top = std::max(top, part(p));
                    for (int64_t p = 0; p < parts && top > -INFINITY; p++) total += std::exp(part(p) - top);
                    const double want_lse = total > 0 ? top + std::log(total) : -INFINITY;
                    CHECK(test::near(lse[r * heads + h], want_lse, 2 * UNIT), "merge_states: LSE %.9g, not %.9g",
                          lse[r * heads + h], want_lse);
                    for (int64_t d = 0; d < dim; d++) {
                        double want = 0, size = 0;
                        for (int64_t p = 0; p < parts; p++) {
                            if (part(p) == -INFINITY) continue;
                            const double term = std::exp(part(p) - want_lse) * outs.at(p * rows + r, h * dim + d);
                            want += term, size += std::fabs(term);
                        }
                        check_rows("merge_states", y, r, h * dim + d, want, size * UNIT * double(parts + 4));
                    }
                }
        }
    }
}

int main() {
    test::use_this_level();
    Random random;
    add_and_silu_mul(random);
    norms(random);
    rotary_embedding(random);
    rows_by_number(random);
    merged_states(random);
    return test::failures();
}
