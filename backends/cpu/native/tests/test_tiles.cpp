// Layout "tiles16": every element has a place of its own inside the tile; every code survives decode and encode; floats
// between two f8 codes go to the nearer one, and to the even one from the middle.
#include "check.h"
#include "tiles.h"

#include <vector>

using namespace opsocket;
using namespace opsocket::OPSOCKET_LEVEL;

template <int32_t C> static uint32_t encode(float x) {
    F v = set(0.0f);
    v[0] = x;  // set(-0.0f) would be 0 + -0 = 0
    return kv_encode<C>(v)[0];
}
template <int32_t C> static float decode(uint32_t code) { return kv_decode<C>(U{} + code)[0]; }

template <int32_t C> static void places(int64_t dim, bool keys) {
    int n = kv_per_dword(C);
    int64_t bytes = keys ? k_code_bytes(C, dim) : v_code_bytes(C, dim);
    CHECK(bytes % 64 == 0, "%lld bytes", (long long)bytes);
    std::vector<uint32_t> used(size_t(bytes / 4));
    for (int t = 0; t < TILE; t++)
        for (int64_t d = 0; d < dim; d++) {
            int64_t dword = keys ? k_dword(C, t, d) : v_dword(C, dim, t, d);
            int shift = kv_shift(C, int(keys ? d % n : t % n));
            uint32_t mask = uint32_t((uint64_t(1) << kv_bits(C)) - 1) << shift;
            bool inside = dword >= 0 && dword * 4 < bytes;
            CHECK(inside && !(used[size_t(dword)] & mask), "code %d token %d dim %lld", C, t, (long long)d);
            if (inside) used[size_t(dword)] |= mask;
        }
}

// Codes of finite values keep their bits, but for the -0 that f8e4m3fnuz does not have.
template <int32_t C> static void round_trip() {
    uint64_t codes = uint64_t(1) << (kv_bits(C) < 16 ? kv_bits(C) : 16);
    for (uint64_t code = 0; code < codes; code++) {
        float x = decode<C>(uint32_t(code));
        bool lowest = kv_is_integer(C) && x < -kv_max_code(C);  // never written
        if (std::isnan(x)) CHECK(std::isnan(decode<C>(encode<C>(x))), "code %d %x", C, unsigned(code));
        else if (!lowest && (std::isfinite(x) || kv_bits(C) == 16))
            CHECK(encode<C>(x) == code, "code %d %x: %g became %x", C, unsigned(code), x, encode<C>(x));
    }
}

template <int32_t C> static void rounds_to_even() {
    uint32_t infinite = C == KV_F8E5M2 ? 0x7c : C == KV_F8E4M3FN ? 0x7f : 0x80;
    for (uint32_t code = 0; code + 1 < infinite; code++) {
        float low = decode<C>(code), high = decode<C>(code + 1), middle = (low + high) / 2;
        CHECK(encode<C>(middle) == (code & 1 ? code + 1 : code), "code %d: %g became %x", C, middle, encode<C>(middle));
        CHECK(encode<C>(std::nextafter(middle, INFINITY)) == code + 1, "code %d above %g", C, middle);
        CHECK(encode<C>(std::nextafter(middle, 0.0f)) == code, "code %d below %g", C, middle);
        CHECK(encode<C>(-high) == ((code + 1) | 0x80), "code %d: %g", C, -high);
    }
    for (float x : {1e30f, INFINITY}) CHECK(decode<C>(encode<C>(x)) == kv_max_code(C), "code %d: %g", C, x);
    CHECK(decode<C>(encode<C>(-INFINITY)) == -kv_max_code(C), "code %d", C);
    CHECK(decode<C>(encode<C>(-1e-9f)) == 0, "code %d: %g", C, decode<C>(encode<C>(-1e-9f)));
}

template <int32_t C> static void integers() {
    const float top = kv_max_code(C);
    for (float x : {0.5f, 1.5f, -0.5f, 2.5f, 1e30f, -INFINITY, INFINITY}) {
        float want = std::fmin(std::fmax(std::nearbyint(x), -top), top);
        CHECK(decode<C>(encode<C>(x)) == want, "code %d: %g became %g", C, x, decode<C>(encode<C>(x)));
    }
    CHECK(decode<C>(encode<C>(NAN)) == 0, "code %d: NaN became %g", C, decode<C>(encode<C>(NAN)));
}

int main() {
    test::use_this_level();
    for (int32_t code = 0; code < KV_CODES; code++)
        with_code(code, []<int32_t C>(KVCodeOf<C>) {
            for (int64_t dim : {1, 7, 16, 40, 64, 80, 128}) places<C>(dim, true), places<C>(dim, false);
            round_trip<C>();
            if constexpr (C >= KV_F8E4M3FN && C <= KV_F8E5M2) rounds_to_even<C>();
            if constexpr (kv_is_integer(C)) integers<C>();
        });
    return test::failures();
}
