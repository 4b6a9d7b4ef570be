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

template <int32_t T> static void turn_halves(const void *x, void *y, const float *turn, int64_t half) {
    int64_t i = 0;
    for (; i + W <= half; i += W) {
        F a = load_t<T>(x, i), b = load_t<T>(x, half + i), cosine = load(turn + i), sine = load(turn + half + i);
        store_t<T>(y, i, a * cosine - b * sine);
        store_t<T>(y, half + i, a * sine + b * cosine);
    }
    for (; i < half; i++) {
        float a = load_one(x, i, T), b = load_one(x, half + i, T), cosine = turn[i], sine = turn[half + i];
        store_one(y, i, T, a * cosine - b * sine);
        store_one(y, half + i, T, a * sine + b * cosine);
    }
}

template <int32_t T> static void turn_neighbours(const void *x, void *y, const float *turn, int64_t rotary) {
    I neighbour;
    for (int i = 0; i < W; i++) neighbour[i] = i ^ 1;
    int64_t i = 0;
    for (; i + W <= rotary; i += W) {
        F v = load_t<T>(x, i);
        store_t<T>(y, i, v * load(turn + i) + __builtin_shuffle(v, neighbour) * load(turn + rotary + i));
    }
    for (; i < rotary; i += 2) {
        float a = load_one(x, i, T), b = load_one(x, i + 1, T), cosine = turn[i], sine = turn[rotary + i + 1];
        store_one(y, i, T, a * cosine - b * sine);
        store_one(y, i + 1, T, a * sine + b * cosine);
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
            for (int64_t head = 0; head < c.heads; head++) {
                const void *x = at(c.x, row * c.x_stride + head * c.head_dim, T);
                void *y = at(c.y, row * c.y_stride + head * c.head_dim, T);
                if (c.interleaved) turn_neighbours<T>(x, y, turn, c.rotary_dim);
                else turn_halves<T>(x, y, turn, c.rotary_dim / 2);
                if (x != y && c.rotary_dim < c.head_dim)
                    std::memcpy(at(y, c.rotary_dim, T), at(x, c.rotary_dim, T),
                                size_t(c.head_dim - c.rotary_dim) * (T == F32 ? 4 : 2));
            }
        }
    });
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
