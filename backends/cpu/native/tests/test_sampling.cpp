// argmax and sample: the order with its ties, infinities and NaN, and each setting of sampling, decided in f64. Where a
// decision is nearer to its border than f32 can tell, nothing is asked.
#include "arrays.h"

using namespace opsocket;
using test::Array, test::Matrix, test::Random;

static void largest(Random &random) {
    for (int64_t width : {1, 5, 64, 1000, 4096, 9001})
        for (int32_t dtype : {F32, F16, BF16})
            for (int64_t rows : {1, 2, 7}) {
                Matrix x = Matrix::random(random, rows, width, 3, dtype);
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t a = random.below(width), b = random.below(width);
                    if (r % 4 == 0) x.set(r, a, 50), x.set(r, b, 50);
                    if (r % 4 == 1) x.set(r, a, NAN), x.set(r, b, INFINITY);
                    if (r % 4 == 2)
                        for (int64_t i = 0; i < width; i++) x.set(r, i, i == a ? 0.0 : -INFINITY);
                    if (r % 4 == 3)
                        for (int64_t i = 0; i < width; i++) x.set(r, i, -INFINITY);
                }
                Array<int64_t> y(rows);
                Argmax command{};
                command.op = OP_ARGMAX, command.wait = 1, command.rows = rows, command.width = width;
                command.x = x.data(), command.x_stride = x.stride, command.y = y.data(), command.dtype = dtype;
                for (int threads : {1, 2, 3}) {
                    command.workspace = rows < threads ? 16 * rows * threads : 0;
                    test::run(command, threads, "argmax");
                    for (int64_t r = 0; r < rows; r++) {
                        int64_t best = 0;
                        for (int64_t i = 1; i < width && !std::isnan(x.at(r, best)); i++)
                            if (x.at(r, i) > x.at(r, best) || std::isnan(x.at(r, i))) best = i;
                        CHECK(y[r] == best, "%d threads, dtype %d, %d x %d: row %d gives %d, not %d", threads, dtype,
                              int(rows), int(width), int(r), int(y[r]), int(best));
                    }
                }
            }
}

struct Settings {
    float temperature, top_p, min_p, uniform, repetition, presence, frequency;
    int64_t top_k;
};

// The token of one request, or -1 where a border is too near. logits: penalized.
static int64_t choose(const std::vector<double> &logits, const Settings &s) {
    std::vector<int64_t> order(logits.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = int64_t(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
    if (s.temperature == 0) return order[0];
    auto weight = [&](size_t rank) {
        return std::exp((logits[size_t(order[rank])] - logits[size_t(order[0])]) / double(s.temperature));
    };
    constexpr double NEAR = 1e-6;
    size_t kept = order.size();
    if (s.top_k > 0) kept = std::min(kept, size_t(s.top_k));
    double total = 0;
    for (size_t rank = 0; rank < kept; rank++) total += weight(rank);
    if (s.top_p < 1 || s.min_p > 0) {
        double mass = 0;
        size_t rank = 0;
        for (; rank < kept; rank++) {
            const double w = weight(rank);
            if (rank && s.top_p < 1 && std::fabs(mass - double(s.top_p) * total) < NEAR * total) return -1;
            if (rank && std::fabs(w - double(s.min_p)) < NEAR * double(s.min_p)) return -1;
            if (rank && ((s.top_p < 1 && mass >= double(s.top_p) * total) || w < double(s.min_p))) break;
            mass += w;
        }
        kept = rank, total = mass;
    }
    double mass = 0;
    for (size_t rank = 0; rank < kept; rank++) {
        mass += weight(rank);
        const double distance = mass - double(s.uniform) * total;
        if (std::fabs(distance) < NEAR * total) return -1;
        if (distance > 0) return order[rank];
    }
    return -1;
}

static void tokens(Random &random) {
    int asked = 0, decided = 0;
    for (int i = 0; i < 200; i++) {
        const int64_t widths[] = {1, 7, 65, 300, 3000, 20000, 40000}, width = widths[i % 7], rows = 1 + random.below(5);
        const int32_t dtype = int32_t(random.below(3));
        Matrix logits = Matrix::random(random, rows, width, 3, dtype, i % 3 ? 3 : 0.1);
        if (i % 5 == 0)
            for (int64_t j = 0; j < width; j++) logits.set(0, j, 1.5);
        if (i % 4 == 1)  // many tokens of each logit, or some; logits that halves of intervals meet
            for (int64_t r = 0, kinds = i % 8 == 1 ? 5 : 257; r < rows; r++)
                for (int64_t j = 0; j < width; j++) logits.set(r, j, 2.0 * double(random.below(kinds)) / double(kinds - 1));
        std::vector<Settings> settings;
        std::vector<int64_t> starts{0}, ids;
        std::vector<float> counts;
        for (int64_t r = 0; r < rows; r++) {
            Settings s{float(0.3 + random.uniform()), 1, 0, float(random.uniform()), 1, 0, 0, 0};
            if (random.below(6) == 0) s.temperature = 0;
            if (random.below(2)) s.top_k = 1 + random.below(2 * width);
            if (random.below(2)) s.top_p = float(random.uniform());
            if (random.below(3) == 0) s.min_p = float(random.uniform());
            if (random.below(2)) s.repetition = 1.3f, s.presence = 0.5f, s.frequency = 0.25f;
            settings.push_back(s);
            for (int64_t id = random.below(5); id < width && random.below(4); id += 1 + random.below(width))
                ids.push_back(id), counts.push_back(float(1 + random.below(4)));
            starts.push_back(int64_t(ids.size()));
        }
        auto column = [&](float Settings::*member) {
            Array<float> values(rows);
            for (int64_t r = 0; r < rows; r++) values[r] = settings[size_t(r)].*member;
            return values;
        };
        const Array<float> temperature = column(&Settings::temperature), top_p = column(&Settings::top_p),
                           min_p = column(&Settings::min_p), uniform = column(&Settings::uniform),
                           repetition = column(&Settings::repetition), presence = column(&Settings::presence),
                           frequency = column(&Settings::frequency), history_counts(counts);
        Array<int64_t> top_k(rows), history_starts(starts), history_ids(ids), y(rows);
        for (int64_t r = 0; r < rows; r++) top_k[r] = settings[size_t(r)].top_k;
        const SampleRows batch{temperature.data(),    top_p.data(),       min_p.data(),         uniform.data(),
                               repetition.data(),     presence.data(),    frequency.data(),     top_k.data(),
                               history_starts.data(), history_ids.data(), history_counts.data()};
        Sample command{};
        command.op = OP_SAMPLE, command.wait = 1, command.rows = rows, command.width = width, command.batch = &batch;
        command.logits = logits.data(), command.logits_stride = logits.stride, command.y = y.data(),
        command.dtype = dtype;
        for (int threads : {1, 2}) {
            command.workspace = (20 * width + 255) / 64 * 64 * threads;  // sample.py
            test::run(command, threads, "sample");
            for (int64_t r = 0; r < rows; r++) {
                const Settings &s = settings[size_t(r)];
                std::vector<double> penalized;
                for (int64_t j = 0; j < width; j++) penalized.push_back(logits.at(r, j));
                for (int64_t h = starts[size_t(r)]; h < starts[size_t(r) + 1]; h++) {
                    float l = float(penalized[size_t(ids[size_t(h)])]);
                    l = l > 0 ? l / s.repetition : l * s.repetition;
                    penalized[size_t(ids[size_t(h)])] = double(l - s.frequency * counts[size_t(h)] - s.presence);
                }
                const int64_t want = choose(penalized, s);
                asked++, decided += want >= 0;
                CHECK(
                    want < 0 || y[r] == want,
                    "%d threads, width %d, temperature %g, top_k %d, top_p %g, min_p %g, uniform %g: token %d, not %d",
                    threads, int(width), double(s.temperature), int(s.top_k), double(s.top_p), double(s.min_p),
                    double(s.uniform), int(y[r]), int(want));
            }
        }
    }
    CHECK(decided > asked / 2, "only %d of %d tokens were far enough from a border", decided, asked);
}

int main() {
    test::use_this_level();
    Random random;
    largest(random);
    tokens(random);
    return test::failures();
}
