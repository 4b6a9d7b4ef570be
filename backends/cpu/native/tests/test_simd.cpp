// Dot products of bytes and conversions of 16-bit floats, against plain arithmetic.
#include "simd.h"

#include "check.h"

using namespace opsocket;
using namespace opsocket::OPSOCKET_LEVEL;

static void dot_products(test::Random &random) {
    for (int round = 0; round < 2000; round++) {
        uint8_t w[4 * W];
        int8_t a[4 * W];
        int32_t acc[W], got[W];
        for (int i = 0; i < 4 * W; i++) {
            w[i] = uint8_t(round % 2 ? random.below(128) : random.below(2) * 127);  // AVX2 wants codes below 128
            a[i] = int8_t(round % 3 ? random.below(256) - 128 : random.below(2) * 255 - 128);
            if (a[i] == -128 && round % 2 == 0) a[i] = -127;
        }
        for (int i = 0; i < W; i++) acc[i] = int32_t(random.below(2000) - 1000);
        I sum = dot_u8s8(load_as<I>(acc), load_as<I>(w), load_as<I>(a));
        std::memcpy(got, &sum, sizeof got);
        for (int i = 0; i < W; i++) {
            int32_t want = acc[i];
            for (int j = 4 * i; j < 4 * i + 4; j++) want += w[j] * a[j];
            CHECK(got[i] == want, "lane %d: %d, not %d", i, got[i], want);
        }
    }
}

static void halves() {
    for (uint32_t h = 0; h < 65536; h++) {
        float x = half_to_float(uint16_t(h));
        int exponent = h >> 10 & 31, fraction = h & 1023;
        double want = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
        if (exponent == 31) want = fraction ? NAN : INFINITY;
        if (h & 0x8000) want = -want;
        CHECK(test::ulps(x, want) == 0, "f16 %04x is %g, not %g", h, x, want);
        if (x != x) continue;
        CHECK(float_to_half(x) == h, "%g is f16 %04x, not %04x", x, float_to_half(x), h);
        CHECK(float_to_bf16(bf16_to_float(uint16_t(h))) == h || (h & 0x7fff) > 0x7f80, "bf16 %04x does not come back", h);
    }
}

// Vectors of 16-bit floats round as single ones do.
static void vectors(test::Random &random) {
    for (int round = 0; round < 20000; round++) {
        float x[2 * W];
        uint16_t got[2 * W];
        for (float &v : x) {
            uint32_t bits = uint32_t(random.bits() >> 20);
            std::memcpy(&v, &bits, 4);
        }
        store_bf16(got, load(x));
        for (int i = 0; i < W; i++) CHECK(got[i] == float_to_bf16(x[i]), "bf16 of %g: %04x", x[i], got[i]);
        store_half(got, load(x));
        for (int i = 0; i < W; i++)
            CHECK(got[i] == float_to_half(x[i]) || x[i] != x[i], "f16 of %g: %04x", x[i], got[i]);
        store_two<BF16>(got, 0, load(x), load(x + W));
        for (int i = 0; i < 2 * W; i++) CHECK(got[i] == float_to_bf16(x[i]), "bf16 of %g: %04x", x[i], got[i]);
    }
}

int main() {
    test::use_this_level();
    test::Random random;
    dot_products(random);
    halves();
    vectors(random);
    return test::failures();
}
