// Routing against f64, sorting by expert against a stable sort, weighted sums against f64.
#include <numeric>

#include "arrays.h"

using namespace opsocket;
using test::Array, test::Matrix, test::Random, test::UNIT;

static void routing(Random &random) {
    for (int i = 0; i < 40; i++) {
        const int64_t rows = 1 + random.below(5), experts = 1 + random.below(70),
                      top_k = 1 + random.below(std::min<int64_t>(experts, 20));
        const int32_t dtype = int32_t(random.below(3));
        Matrix logits = Matrix::random(random, rows, experts, 3, dtype);
        for (int64_t e = 1; e < experts; e += 3) logits.set(0, e, logits.at(0, e - 1));  // ties
        Array<float> weights(rows * top_k);
        Array<int64_t> chosen(rows * top_k);
        MoERoute command{};
        command.op = OP_MOE_ROUTE, command.wait = 1, command.rows = rows, command.experts = experts,
        command.top_k = top_k;
        command.logits = logits.data(), command.logits_stride = logits.stride, command.dtype = dtype;
        command.weights = weights.data(), command.chosen = chosen.data(), command.renormalize = i % 2;
        for (int threads : {1, 2}) {
            command.workspace = 8 * experts * threads;
            test::run(command, threads, "moe_route");
            for (int64_t r = 0; r < rows; r++) {
                std::vector<int64_t> order(static_cast<size_t>(experts));
                for (int64_t e = 0; e < experts; e++) order[size_t(e)] = e;
                std::stable_sort(order.begin(), order.end(),
                                 [&](int64_t a, int64_t b) { return logits.at(r, a) > logits.at(r, b); });
                double total = 0;
                for (int64_t e = 0; e < (i % 2 ? top_k : experts); e++)
                    total += std::exp(logits.at(r, order[size_t(e)]));
                for (int64_t e = 0; e < top_k; e++) {
                    const double want = std::exp(logits.at(r, order[size_t(e)])) / total;
                    CHECK(chosen[r * top_k + e] == order[size_t(e)], "moe_route: expert %d, not %d",
                          int(chosen[r * top_k + e]), int(order[size_t(e)]));
                    CHECK(test::near(weights[r * top_k + e], want, want * 12 * UNIT),
                          "moe_route: weight %.9g, not %.9g", weights[r * top_k + e], want);
                }
            }
        }
    }
}

static void sorting(Random &random) {
    for (int i = 0; i < 200; i++) {
        const int64_t rows = random.below(40), experts = 1 + random.below(i % 7 ? 20 : 300),
                      top_k = 1 + random.below(std::min<int64_t>(experts, 9)), choices = rows * top_k;
        Array<int64_t> chosen(choices), tokens(choices), offsets(experts + 1), slots(choices);
        // Some experts are nobody's choice.
        const int64_t most = 1 + random.below(experts);
        for (int64_t c = 0; c < choices; c++) chosen[c] = random.below(most);
        MoESort command{};
        command.op = OP_MOE_SORT, command.wait = 1, command.rows = rows, command.experts = experts;
        command.top_k = top_k, command.chosen = chosen.data(), command.tokens = tokens.data();
        command.offsets = offsets.data(), command.slots = slots.data();
        std::vector<int64_t> order(static_cast<size_t>(choices));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return chosen[a] < chosen[b]; });
        for (int threads : {1, 2}) {
            test::run(command, threads, "moe_sort");
            for (int64_t slot = 0; slot < choices; slot++) {
                const int64_t choice = order[size_t(slot)];
                CHECK(slots[choice] == slot, "moe_sort: slot %d, not %d", int(slots[choice]), int(slot));
                CHECK(tokens[slot] == choice / top_k, "moe_sort: token %d, not %d", int(tokens[slot]),
                      int(choice / top_k));
            }
            for (int64_t e = 0; e <= experts; e++) {
                int64_t before = 0;
                for (int64_t c = 0; c < choices; c++) before += chosen[c] < e;
                CHECK(offsets[e] == before, "moe_sort: offset %d, not %d", int(offsets[e]), int(before));
            }
        }
    }
}

// What is undefined must stay within the arrays all the same.
static void strange_experts() {
    constexpr int64_t STRANGE[] = {-1, INT64_MIN, 3, INT64_MAX, 1, 2};
    Array<int64_t> chosen(6), tokens(6), offsets(4), slots(6);
    for (int64_t i = 0; i < 6; i++) chosen[i] = STRANGE[i];
    MoESort command{};
    command.op = OP_MOE_SORT, command.wait = 1, command.rows = 3, command.experts = 3, command.top_k = 2;
    command.chosen = chosen.data(), command.tokens = tokens.data();
    command.offsets = offsets.data(), command.slots = slots.data();
    test::run(command, 2, "moe_sort");
    CHECK(offsets[3] == 6, "moe_sort: %d choices, not 6", int(offsets[3]));
}

static void weighted_sums(Random &random) {
    for (int64_t width : {1, 3, 16, 33, 64, 100, 259, 2048, 4100})
        for (int32_t dtype : {F32, F16, BF16}) {
            const int64_t rows = random.below(6), top_k = 1 + random.below(9), height = 1 + random.below(40);
            const Matrix x = Matrix::random(random, height, width, 3, dtype, 2);
            Matrix y(rows, width, 2, dtype);
            Array<int64_t> slots(rows * top_k);
            Array<float> weights(rows * top_k);
            for (int64_t i = 0; i < rows * top_k; i++) slots[i] = random.below(height);
            for (int64_t i = 0; i < rows * top_k; i++) weights[i] = float(random.normal());
            const bool has_strange = rows > 1 && random.below(2);
            if (has_strange) slots[top_k - 1] = random.below(2) ? height : -1;
            MoECombine command{};
            command.op = OP_MOE_COMBINE, command.wait = 1, command.rows = rows, command.width = width;
            command.top_k = top_k, command.height = height, command.dtype = dtype;
            command.x = x.data(), command.x_stride = x.stride, command.slots = slots.data();
            command.weights = weights.data(), command.y = y.data(), command.y_stride = y.stride;
            for (int threads : {1, 2}) {
                y.clear();
                command.workspace = 8 * top_k * threads;
                test::run(command, threads, "moe_combine");
                CHECK(y.gaps_are_whole(), "moe_combine has written between rows");
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < width; i++) {
                        if (has_strange && r == 0) {
                            CHECK(y.at(r, i) != y.at(r, i), "moe_combine: %.9g of no row", y.at(r, i));
                            continue;
                        }
                        double want = 0, size = 0;
                        for (int64_t j = r * top_k; j < (r + 1) * top_k; j++) {
                            const double part = x.at(slots[j], i) * double(weights[j]);
                            want += part, size += std::fabs(part);
                        }
                        CHECK(test::near(y.at(r, i), want, size * double(top_k + 1) * UNIT, dtype),
                              "moe_combine, dtype %d, width %d: %.9g, not %.9g", dtype, int(width), y.at(r, i), want);
                    }
            }
        }
}

int main() {
    test::use_this_level();
    Random random;
    routing(random);
    sorting(random);
    strange_experts();
    weighted_sums(random);
    return test::failures();
}
