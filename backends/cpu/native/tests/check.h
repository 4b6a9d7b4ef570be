// What all native tests share. A test is a program of its own, compiled once per level with that level's flags and
// OPSOCKET_LEVEL; it begins with `use_this_level()` and returns `failures()`.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "dispatch.h"

#define OPSOCKET_TEXT_OF(name) #name
#define OPSOCKET_NAME_OF(name) OPSOCKET_TEXT_OF(name)

namespace test {

inline int &failed() {
    static int count = 0;
    return count;
}

inline int failures() {
    if (failed()) std::printf("%d checks failed at level %s\n", failed(), OPSOCKET_NAME_OF(OPSOCKET_LEVEL));
    return failed() ? 1 : 0;
}

// Leaves the program with 77, which means "not here", where this processor lacks the level.
inline void use_this_level() {
    if (opsocket::use_level(OPSOCKET_NAME_OF(OPSOCKET_LEVEL))) return;
    std::printf("this processor does not have level %s\n", OPSOCKET_NAME_OF(OPSOCKET_LEVEL));
    std::exit(77);
}

#define CHECK(condition, ...)                                          \
    do {                                                               \
        if (!(condition) && ++test::failed() <= 20) {                  \
            std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::printf(__VA_ARGS__);                                  \
            std::printf("\n");                                         \
        }                                                              \
    } while (0)

// Deterministic numbers (xorshift; Marsaglia 2003).
struct Random {
    uint64_t state = 88172645463325252u;
    uint64_t bits() {
        state ^= state << 13;
        state ^= state >> 7;
        return state ^= state << 17;
    }
    double uniform() { return double(bits() >> 11) * 0x1p-53; }
    double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
    int64_t below(int64_t n) { return int64_t(bits() % uint64_t(n)); }
};

// The distance of y from the exact value in units in the last place of f32, at least the smallest subnormal.
inline double ulps(float y, double want) {
    if (double(y) == want) return 0;
    if (std::isnan(want) || std::isnan(y)) return std::isnan(want) && std::isnan(y) ? 0 : INFINITY;
    if (std::fabs(want) > 3.4028235677973366e38) return std::isinf(y) && (y > 0) == (want > 0) ? 0 : INFINITY;
    int exponent;
    std::frexp(want, &exponent);
    return std::fabs(y - want) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

}  // namespace test
