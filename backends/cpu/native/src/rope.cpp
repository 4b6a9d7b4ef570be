// Rotary position embedding: angles, cosines and sines in f64, kept by position, applied in f32, rounded once.
#include <atomic>

#include "elementwise.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

enum State : uint8_t { UNKNOWN, WRITING, KNOWN };

static int64_t turn_size(const Rope &c) { return c.interleaved ? c.rotary_dim : c.rotary_dim / 2; }

static void compute_turn(const Rope &c, int64_t position, float *turn) {
    int64_t half = c.rotary_dim / 2, n = turn_size(c);
    for (int64_t i = 0; i < half; i++) {
        double frequency = c.factors ? c.frequencies[i] / double(c.factors[i]) : c.frequencies[i];
        double angle = double(position) * frequency;
        float cosine = float(std::cos(angle) * c.magnitude), sine = float(std::sin(angle) * c.magnitude);
        if (c.interleaved) {
            turn[2 * i] = turn[2 * i + 1] = cosine;
            turn[n + 2 * i] = -sine;
            turn[n + 2 * i + 1] = sine;
        } else {
            turn[i] = cosine;
            turn[n + i] = sine;
        }
    }
}

// Cosines and sines of a position: from the table, or computed, and then left there by the first thread that has them.
static const float *turn_of(const Rope &c, int64_t position, float *scratch) {
    RopeTable &table = *c.table;
    int64_t size = 2 * turn_size(c);
    if (position < 0 || position >= table.positions) {
        compute_turn(c, position, scratch);
        return scratch;
    }
    float *row = table.turns + position * size;
    std::atomic_ref<uint8_t> state(table.state[position]);
    if (state.load(std::memory_order_acquire) == KNOWN) return row;
    compute_turn(c, position, scratch);
    uint8_t unknown = UNKNOWN;
    if (state.compare_exchange_strong(unknown, WRITING)) {
        std::memcpy(row, scratch, size_t(size) * sizeof(float));
        state.store(KNOWN, std::memory_order_release);
    }
    return scratch;
}

// A table that was made with other factors is forgotten. Every thread sees the same, so all come to the barriers.
static void check_factors(const Rope &c, Worker &worker) {
    if (!c.factors) return;
    size_t bytes = size_t(c.rotary_dim / 2) * sizeof(float);
    bool same = !std::memcmp(c.table->factors, c.factors, bytes);
    if (same) return;
    worker.barrier();
    if (worker.index == 0) {
        std::memcpy(c.table->factors, c.factors, bytes);
        std::memset(c.table->state, UNKNOWN, size_t(c.table->positions));
    }
    worker.barrier();
}

// The heads of a row, head_dim apart. Channels are the outer loop: what turns them stays in registers for all heads.
template <int32_t T> static void turn_halves(const Rope &c, const void *x, void *y, const float *turn) {
    const int64_t half = c.rotary_dim / 2, end = c.heads * c.head_dim;
    int64_t i = 0;
    for (; i + 2 * W <= half; i += 2 * W) {
        const F cos0 = load(turn + i), cos1 = load(turn + i + W), sin0 = load(turn + half + i),
                sin1 = load(turn + half + i + W);
        for (int64_t one = i, other = half + i; one < end; one += c.head_dim, other += c.head_dim) {
            const F a0 = load_t<T>(x, one), a1 = load_t<T>(x, one + W), b0 = load_t<T>(x, other),
                    b1 = load_t<T>(x, other + W);
            store_two<T>(y, one, a0 * cos0 - b0 * sin0, a1 * cos1 - b1 * sin1);
            store_two<T>(y, other, a0 * sin0 + b0 * cos0, a1 * sin1 + b1 * cos1);
        }
    }
    for (; i < half; i += W) {
        const int rest = int(std::min<int64_t>(W, half - i));
        const F cosine = load_part(turn, i, F32, rest), sine = load_part(turn, half + i, F32, rest);
        for (int64_t one = i, other = half + i; one < end; one += c.head_dim, other += c.head_dim) {
            const F a = load_part(x, one, T, rest), b = load_part(x, other, T, rest);
            store_part(y, one, T, a * cosine - b * sine, rest);
            store_part(y, other, T, a * sine + b * cosine, rest);
        }
    }
}

template <int32_t T> static void turn_neighbours(const Rope &c, const void *x, void *y, const float *turn) {
    const int64_t rotary = c.rotary_dim, end = c.heads * c.head_dim;
    I neighbour;
    for (int i = 0; i < W; i++) neighbour[i] = i ^ 1;
    auto turned = [&](F v, F cosine, F sine) { return v * cosine + __builtin_shuffle(v, neighbour) * sine; };
    int64_t i = 0;
    for (; i + 2 * W <= rotary; i += 2 * W) {
        const F cos0 = load(turn + i), cos1 = load(turn + i + W), sin0 = load(turn + rotary + i),
                sin1 = load(turn + rotary + i + W);
        for (int64_t at = i; at < end; at += c.head_dim)
            store_two<T>(y, at, turned(load_t<T>(x, at), cos0, sin0), turned(load_t<T>(x, at + W), cos1, sin1));
    }
    for (; i < rotary; i += W) {
        const int rest = int(std::min<int64_t>(W, rotary - i));
        const F cosine = load_part(turn, i, F32, rest), sine = load_part(turn, rotary + i, F32, rest);
        for (int64_t at = i; at < end; at += c.head_dim)
            store_part(y, at, T, turned(load_part(x, at, T, rest), cosine, sine), rest);
    }
}

void rope(const Command *command, Worker &worker) {
    const Rope &c = *static_cast<const Rope *>(command);
    check_factors(c, worker);
    int64_t begin, end;
    worker.share(c.rows, begin, end);
    float *scratch = reinterpret_cast<float *>(worker.own);
    by_dtype(c.dtype, [&](auto type) {
        constexpr int32_t T = type;
        for (int64_t row = begin; row < end; row++) {
            const float *turn = turn_of(c, c.positions[row], scratch);
            const void *x = at(c.x, row * c.x_stride, T);
            void *y = at(c.y, row * c.y_stride, T);
            if (c.interleaved) turn_neighbours<T>(c, x, y, turn);
            else turn_halves<T>(c, x, y, turn);
            if (x == y || c.rotary_dim == c.head_dim) continue;
            for (int64_t i = c.rotary_dim; i < c.heads * c.head_dim; i += c.head_dim)
                std::memcpy(at(y, i, T), at(x, i, T), size_t(c.head_dim - c.rotary_dim) * (T == F32 ? 4 : 2));
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
