// exp, exp2, tanh and sigmoid against f64, over all of f32: every 2^10th bit pattern and what lies near special values.
#include "functions.h"

#include "check.h"

using namespace opsocket;
using namespace opsocket::OPSOCKET_LEVEL;

template <class Function, class Reference>
static void compare(const char *name, Function function, Reference reference, double bound) {
    double worst = 0;
    float at = 0;
    auto look = [&](const float *x) {
        float y[W];
        store(y, function(load(x)));
        for (int i = 0; i < W; i++) {
            double error = test::ulps(y[i], reference(double(x[i])));
            if (error > worst) worst = error, at = x[i];
        }
    };
    for (uint64_t first = 0; first < uint64_t(1) << 32; first += W << 10) {
        float x[W];
        for (uint32_t i = 0; i < W; i++) {
            uint32_t bits = uint32_t(first) + (i << 10) + uint32_t(first >> 14) % 1021;
            std::memcpy(&x[i], &bits, 4);
        }
        look(x);
    }
    for (double centre : {0.0, 0.5, 0.6, 1.0, 9.02, 10.0, 87.0, 88.72284, 88.7228394, -87.3, -103.0, -103.97, -104.0, -126.0, 127.0,
                          128.0})
        for (int step = -2000; step < 2000; step += W) {
            float x[W];
            for (int i = 0; i < W; i++) x[i] = float(centre + (step + i) * (std::fabs(centre) + 1e-30) * 0x1p-24);
            look(x);
        }
    CHECK(worst <= bound, "%s is %.3f units in the last place off at %.9g", name, worst, at);
    std::printf("%s: %.3f units in the last place at most\n", name, worst);
}

int main() {
    test::use_this_level();
    compare("exp", [](F x) { return opsocket::OPSOCKET_LEVEL::exp(x); }, [](double x) { return std::exp(x); }, 2.0);
    // 0 below -126, so that nothing underflows.
    compare("exp2", [](F x) { return opsocket::OPSOCKET_LEVEL::exp2(x); },
            [](double x) { return x < -126 ? 0.0 : std::exp2(x); }, 2.0);
    compare("tanh", [](F x) { return opsocket::OPSOCKET_LEVEL::tanh(x); }, [](double x) { return std::tanh(x); }, 2.0);
    // Below -88 e^-x nears the largest f32: the result may be 0 there, and silu_mul's bound says so.
    compare("sigmoid", [](F x) { return sigmoid(x < -88.0f ? set(-88.0f) : x); },
            [](double x) { return 1 / (1 + std::exp(x < -88 ? 88 : -x)); }, 3.0);
    return test::failures();
}
