// From logits to a token by a given uniform number. Every setting keeps a prefix of the tokens in falling order of
// their logits, but hardly any of that order is needed: the few hundred largest, found by the maxima of blocks, and where
// these do not decide, those few tokens between whose logits the decision lies.
#include <cfloat>
#include <cmath>
#include <functional>

#include "argmax.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

constexpr int64_t BLOCK = 64, FIRST = 256, FEW = 256;

// Tokens in falling order up to `last`: what they weigh, and how many they are.
struct Prefix {
    double mass;
    int64_t count, last;
};

// When a prefix is enough: it has `count` tokens; or, where that is 0, weighs `mass`, or more where that must be exceeded.
struct Enough {
    int64_t count;
    double mass;
    bool exceeded;

    bool operator()(const Prefix &p) const {
        return count ? p.count >= count : exceeded ? p.mass > mass : p.mass >= mass;
    }
    // How much of the way from a prefix that is not enough to one that is: 0 to 1, if what tokens weigh were spread evenly.
    double way(const Prefix &from, const Prefix &to) const {
        return count ? double(count - from.count) / double(to.count - from.count) : (mass - from.mass) / (to.mass - from.mass);
    }
};

// Sums in f64 of W numbers at a time.
class Mass {
   public:
    void add(F numbers) {
#if OPSOCKET_AVX512  // the compiler would widen them four at a time
        low += (Doubles)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)numbers));
        high += (Doubles)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)numbers, 1));
#else
        typedef float Half __attribute__((vector_size(W * 2)));
        Half half[2];
        __builtin_memcpy(half, &numbers, sizeof half);
        low += __builtin_convertvector(half[0], Doubles);
        high += __builtin_convertvector(half[1], Doubles);
#endif
    }
    double all() const {
        double total = 0;
        for (int lane = 0; lane < W / 2; lane++) total += low[lane] + high[lane];
        return total;
    }

   private:
    typedef double Doubles __attribute__((vector_size(W * 4)));
    Doubles low = {}, high = {};
};

// One request's logits, penalized, and their weights e^((l - largest) / temperature), which make probabilities when
// divided by their sum.
class Candidates {
   public:
    // memory: 20 bytes for every logit, and 192.
    Candidates(unsigned char *memory, int64_t width)
        : width(width), padded((width + W - 1) / W * W), order(reinterpret_cast<uint64_t *>(memory)),
          logits(reinterpret_cast<float *>(order + width)), weights(logits + padded), maxima(weights + padded) {}

    float *values() { return logits; }

    // What all weigh, of logits of which `largest_logit` is the largest.
    double begin(float largest_logit, float by_temperature) {
        sorted = 0, top = largest_logit, temperature = by_temperature;
        std::fill(logits + width, logits + padded, -INFINITY);
        Mass total;
        F least = set(INFINITY);
        for (int64_t i = 0; i < padded; i += W) {
            const F logit = load(logits + i);
            // Shifted before it is divided, so that no temperature overflows.
            const F w = exp((logit - top) / temperature);
            if (i + W <= width) least = min(least, logit);
            store(weights + i, w);
            total.add(w);
        }
        std::fill(weights + width, weights + padded, 0.0f);
        bottom = -largest(-least);
        for (int64_t i = width / W * W; i < width; i++) bottom = std::min(bottom, logits[i]);
        return total.all();
    }

    // What those weigh that weigh `least` or more.
    double mass_from(float least) const {
        Mass mass;
        for (int64_t i = 0; i < padded; i += W) {
            const F w = load(weights + i);
            mass.add(chosen(w, w >= least));
        }
        return mass.all();
    }

    // The shortest prefix that is enough; all tokens that were looked at where rounding leaves none.
    Prefix shortest(const Enough &enough) {
        if (!sorted) sort_first();
        Prefix prefix{0, 0, 0};
        for (int64_t rank = 0; rank < sorted; rank++)
            if (takes(prefix, index_of(order[rank]), enough)) return prefix;
        return sorted < width ? search(enough) : prefix;
    }

   private:
    int64_t width, padded;
    uint64_t *order;  // [0, sorted)
    float *logits, *weights, *maxima;  // of blocks
    float top = 0, bottom = 0, temperature = 1;
    int64_t sorted = 0;

    static F chosen(F numbers, I mask) { return as_float(as_int(numbers) & mask); }

    bool takes(Prefix &prefix, int64_t token, const Enough &enough) const {
        prefix.mass += double(weights[token]), prefix.count++, prefix.last = token;
        return enough(prefix);
    }

    // The first tokens in falling order.
    void sort_first() {
        const int64_t blocks = (width + BLOCK - 1) / BLOCK;
        int64_t taken = 0;
        if (blocks > FIRST) {
            find_maxima();
            // At least FIRST logits are not below the FIRST largest maximum of a block.
            float *copy = reinterpret_cast<float *>(order);
            std::copy(maxima, maxima + blocks, copy);
            std::nth_element(copy, copy + FIRST - 1, copy + blocks, std::greater<float>());
            const float least = copy[FIRST - 1];
            for (int64_t block = 0; block < blocks; block++) {
                if (!(maxima[block] >= least)) continue;
                for (int64_t i = block * BLOCK, end = std::min(width, i + BLOCK); i < end; i++)
                    if (logits[i] >= least) order[taken++] = order_key(logits[i], i);
            }
        } else {
            for (; taken < width; taken++) order[taken] = order_key(logits[taken], taken);
        }
        sorted = std::min(taken, FIRST);
        if (sorted < taken) std::nth_element(order, order + sorted, order + taken, std::greater<uint64_t>());
        std::sort(order, order + sorted, std::greater<uint64_t>());
    }

    void find_maxima() {
        for (int64_t block = 0; block * BLOCK < width; block++) {
            const int64_t end = std::min(padded, (block + 1) * BLOCK);
            F most = set(-INFINITY);
            for (int64_t i = block * BLOCK; i < end; i += W) most = max(most, load(logits + i));
            maxima[block] = largest(most);
        }
    }

    // All tokens whose logits are larger than `logit`; `last` is any token.
    Prefix beyond(float logit) const {
        Mass mass;
        I count{};
        for (int64_t i = 0; i < padded; i += W) {
            const I is = load(logits + i) > logit;
            count -= is;
            mass.add(chosen(load(weights + i), is));
        }
        Prefix prefix{mass.all(), 0, index_of(order[0])};
        for (int lane = 0; lane < W; lane++) prefix.count += count[lane];
        return prefix;
    }

    // `shortest` by a search for the logit at which prefixes begin to be enough: it is in (low, high].
    Prefix search(const Enough &enough) const {
        float high = top, low = std::max(top - 110 * temperature, std::nextafter(bottom, -INFINITY));
        low = std::max(-FLT_MAX, std::min(low, std::nextafter(top, -INFINITY)));
        Prefix above{0, 0, index_of(order[0])}, below = beyond(low);
        for (bool halve = true; below.count - above.count > FEW; halve = !halve) {
            const float middle = low / 2 + high / 2;
            if (!(low < middle && middle < high)) return take_equal(above, high, enough);
            float pivot = middle;
            if (!halve) {
                // Twice as far from the nearer end as it should be, so that less than half is left, mostly.
                const double way = enough.way(above, below), part = way < 0.5 ? 2 * way : 2 * way - 1;
                pivot = high - float(part) * (high - low);
                if (!(low < pivot && pivot < high)) pivot = middle;
            }
            const Prefix found = beyond(pivot);
            if (enough(found)) low = pivot, below = found;
            else high = pivot, above = found;
        }
        return take_few(above, low, high, enough);
    }

    // Tokens between two logits, which are few, in their order.
    Prefix take_few(Prefix prefix, float low, float high, const Enough &enough) const {
        uint64_t some[FEW];
        int64_t taken = 0;
        for (int64_t first = 0; first < width; first += BLOCK) {
            const int64_t end = std::min(width, first + BLOCK);
            I found{};
            for (int64_t i = first; i < end; i += W) {
                const F logit = load(logits + i);
                found |= (logit > low) & (logit <= high);
            }
            if (!any(found)) continue;
            for (int64_t i = first; i < end && taken < FEW; i++)
                if (logits[i] > low && logits[i] <= high) some[taken++] = order_key(logits[i], i);
        }
        std::sort(some, some + taken, std::greater<uint64_t>());
        for (int64_t i = 0; i < taken; i++)
            if (takes(prefix, index_of(some[i]), enough)) break;
        return prefix;
    }

    // Of more tokens than a few that have the same logit, the first ones.
    Prefix take_equal(Prefix prefix, float logit, const Enough &enough) const {
        for (int64_t i = 0; i < width; i++)
            if (logits[i] == logit && takes(prefix, i, enough)) break;
        return prefix;
    }
};

static void penalize(const SampleRows &batch, int64_t row, float *logits) {
    float repetition = batch.repetition[row], presence = batch.presence[row], frequency = batch.frequency[row];
    for (int64_t i = batch.history_start[row]; i < batch.history_start[row + 1]; i++) {
        float &logit = logits[batch.history_ids[i]];
        float seen = logit > 0 ? logit / repetition : logit * repetition;
        logit = seen - frequency * batch.history_counts[i] - presence;
    }
}

static int64_t draw(const SampleRows &batch, int64_t row, Candidates &candidates, const Best &best, int64_t width) {
    double mass = candidates.begin(best.value, batch.temperature[row]);
    if (!(mass >= 1.0)) return best.index;  // an infinite logit or NaN: there are no probabilities

    // All that is kept are prefixes of one order: what the shortest weighs says which tokens it has.
    const int64_t top_k = batch.top_k[row];
    const float top_p = batch.top_p[row], min_p = batch.min_p[row];
    if (top_k > 0 && top_k < width) mass = candidates.shortest({top_k, 0, false}).mass;
    const double likely = double(top_p) * mass;
    if (min_p > 0) mass = std::min(mass, candidates.mass_from(min_p));
    if (top_p < 1 && likely < mass) mass = candidates.shortest({0, likely, false}).mass;
    return candidates.shortest({0, double(batch.uniform[row]) * mass, true}).last;
}

void sample(const Command *command, Worker &worker) {
    const Sample &c = *static_cast<const Sample *>(command);
    const SampleRows &batch = *c.batch;
    Candidates candidates(worker.shared + c.workspace / worker.count / 64 * 64 * worker.index, c.width);
    float *logits = candidates.values();
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    for (int64_t row = begin; row < end; row++) {
        const void *x = at(c.logits, row * c.logits_stride, c.dtype);
        int64_t i = 0;
        for (; i + W <= c.width; i += W) store(logits + i, load_any(x, i, c.dtype));
        for (; i < c.width; i++) logits[i] = load_one(x, i, c.dtype);
        penalize(batch, row, logits);
        Best best = best_of<F32>(logits, 0, c.width);
        c.y[row] = batch.temperature[row] == 0 ? best.index : draw(batch, row, candidates, best, c.width);
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
