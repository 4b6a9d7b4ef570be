// Codes and floats that are packed, some rows at a time, lie where panel.h says, and nothing else is written.
#include "arrays.h"
#include "pack.h"
#include "weights.h"

using namespace opsocket;
using test::Array, test::CodedWeight, test::CodeFormat, test::FloatWeight, test::Random;

// pack(first, rows), one call after the other: whole panels but for the last.
template <class Pack> static void in_pieces(Random &random, int64_t n, Pack pack) {
    for (int64_t first = 0; first < n;) {
        const int64_t some = (1 + random.below(3)) * PANEL, rows = n - first < some ? n - first : some;
        pack(first, rows);
        first += rows;
    }
}

static void codes(Random &random) {
    const int64_t groups[] = {16, 32, 48, 64, 128, 256, 0};
    for (int i = 0; i < 120; i++) {
        CodeFormat format{2 << random.below(3), random.below(2) != 0, random.below(3) == 0, groups[random.below(7)]};
        if (i % 6 == 3) format.code = E4M3FN, format.bits = 8, format.minimum = false;
        if (i % 6 == 0) format = test::some_by_table(random);
        if (i % 4 == 2) format = test::some_k_quant(random);
        const int64_t n = 1 + random.below(200), block = format.super ? format.super : format.group;
        const int64_t k = block ? block * (1 + random.below(4)) : 1 + random.below(200);
        const CodedWeight w(random, format, n, k, false);
        Array<uint8_t> all(w.panels.count() * w.panels.panel_bytes());
        std::memcpy(all.data(), w.panels.data, size_t(all.size()));
        Panels to = w.panels;
        to.data = all.data();
        for (int64_t panel = 0; panel < to.count(); panel++)
            for (int64_t g = 0; g < to.k / to.group; g++)
                std::memset(const_cast<uint8_t *>(to.group_at(to.data + panel * to.panel_bytes(), g)), 0xa5,
                            size_t(to.code_bytes()));
        in_pieces(random, n, [&](int64_t first, int64_t rows) {
            const Array<uint8_t> some(rows * k);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t j = 0; j < k; j++) some[r * k + j] = uint8_t(w.stored(first + r, j));
            pack_codes(to, some.data(), k, first, rows);
        });
        int64_t wrong = 0;
        for (int64_t j = 0; j < all.size(); j++) wrong += all[j] != w.panels.data[j];
        CHECK(!wrong, "%d bits, groups of %d in %d, code %d, %d x %d: %d bytes of %d", format.bits, int(format.group),
              int(format.super), int(format.code), int(n), int(k), int(wrong), int(all.size()));
    }
}

static void floats(Random &random) {
    for (int i = 0; i < 30; i++) {
        const int32_t dtype = int32_t(i % 3);
        const int64_t bytes = dtype == F32 ? 4 : 2, n = 1 + random.below(200), k = 1 + random.below(70);
        const FloatWeight w(random, dtype, n, k);
        const int64_t stored = dtype == BF16 ? (k + 1) / 2 * 2 : k, panels = (n + PANEL - 1) / PANEL;
        const Array<uint8_t> all(panels * stored * PANEL * bytes);
        in_pieces(random, n, [&](int64_t first, int64_t rows) {
            const Array<uint8_t> some(rows * k * bytes);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t j = 0; j < k; j++)
                    OPSOCKET_LEVEL::store_one(some.data(), r * k + j, dtype, float(w.value(first + r, j)));
            pack_floats(all.data(), some.data(), k, bytes, dtype == BF16, first, rows);
        });
        CHECK(!std::memcmp(all.data(), w.panels.data, size_t(all.size())), "type %d, %d x %d", int(dtype), int(n), int(k));
    }
}

int main() {
    test::use_this_level();
    Random random;
    codes(random);
    floats(random);
    return test::failures();
}
