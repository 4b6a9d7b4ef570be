// How many operations a second this level's instructions come to, from registers: what every kernel that computes is
// measured against.
#include "amx.h"
#include "kernels.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// Independent chains: enough to fill the pipes (latency 4 to 5 cycles, two pipes).
constexpr int CHAINS = 12;

template <class V, class Step> static float chains(int64_t steps, V first, V factor, Step step) {
    V c[CHAINS];
    for (int j = 0; j < CHAINS; j++) c[j] = first;
    for (int64_t i = 0; i < steps; i++) {
        for (int j = 0; j < CHAINS; j++) c[j] = step(c[j], factor);
#if OPSOCKET_AVX512 || OPSOCKET_AVX2
        asm volatile("" : "+v"(factor));  // or the compiler would do the steps in one
#elif defined(__x86_64__)
        asm volatile("" : "+x"(factor));
#else
        asm volatile("" : "+w"(factor));
#endif
    }
    float total = 0;
    for (int j = 0; j < CHAINS; j++) total += float(sum(c[j]));
    return total;
}

#if OPSOCKET_AMX
// Four sums of tiles, as many as two of rows and two of columns make.
template <class Step> static float tile_chains(int64_t steps, Step step) {
    const Tiles tiles;
    TileShapes shapes;
    for (int t = 0; t < 8; t++) shapes.set(t, 16, 64);
    shapes.use();
    for (int64_t i = 0; i < steps; i++) step();
    alignas(64) float sums[16][16];
    store_tile<0>(sums, 64);
    return sums[0][0];
}
constexpr int64_t TILE_OPERATIONS = 4 * 16 * 16 * 16 * 2;  // of dwords
#endif

void rate(const Command *command, Worker &worker) {
    const Rate &c = *static_cast<const Rate *>(command);
    float total = 0;
    int64_t operations = 0;
    if (c.kind == RATE_F32) {
        operations = CHAINS * W * 2;
        total = chains(c.steps, set(1.0f), set(0.5f), [](F a, F b) { return b * b + a; });
#if OPSOCKET_AMX
    } else if (c.kind == RATE_INT8) {
        operations = TILE_OPERATIONS * 4;
        total = tile_chains(c.steps, [] { add_signed<0, 4, 6>(), add_signed<1, 4, 7>(), add_signed<2, 5, 6>(), add_signed<3, 5, 7>(); });
    } else if (c.kind == RATE_BF16) {
        operations = TILE_OPERATIONS * 2;
        total = tile_chains(c.steps, [] { add_bf16<0, 4, 6>(), add_bf16<1, 4, 7>(), add_bf16<2, 5, 6>(), add_bf16<3, 5, 7>(); });
    }
#else
    } else if (c.kind == RATE_INT8) {
        operations = CHAINS * W * 4 * 2;
#if OPSOCKET_AVX2 && !OPSOCKET_AVX_VNNI
        // In 16 bits, as products of most codes are summed. Of products that are all alike the compiler would make one.
        total = chains(c.steps, set(0), set(0x01010101), [](I a, I b) {
            I products;
            asm volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(a), "=&x"(products) : "x"(b));
            return a;
        });
#else
        total = chains(c.steps, set(0), set(0x01010101), [](I a, I b) { return dot_u8s8(a, b, b); });
#endif
    }
#if OPSOCKET_AVX512_BF16
    else if (c.kind == RATE_BF16) {
        operations = CHAINS * W * 2 * 2;
        total = chains(c.steps, set(1.0f), as_float(set(0x3f003f00)), [](F a, F b) {
            return (F)_mm512_dpbf16_ps((__m512)a, (__m512bh)(__m512i)as_int(b), (__m512bh)(__m512i)as_int(b));
        });
    }
#endif
#endif
    c.sums[worker.index * 16] = total;
    if (worker.index == 0) *c.operations = operations;
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
