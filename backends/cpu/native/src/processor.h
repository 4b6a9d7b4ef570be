// What makes of processor differ in where they run the same instructions: what pays here, decided once.
//
// By the maker's name, not by a measurement when the library loads: two runs on one machine must take the same kernels,
// or their numbers differ.
#pragma once
#include <cstdint>

namespace opsocket {

struct Processor {
    // Dot products of bf16 pairs beat FMAs of f32. On Intel's cores they take four times as long (Emerald Rapids: 88 G
    // operations a second of a core beside 180 G; bf16 is AMX's there).
    bool bf16_dots_pay;
    // Lines asked for as data that need not stay come as fast as others. On Intel's cores such lines skip the second
    // level, and with it most of what a core can wait for at a time (2 cores of an Emerald Rapids: 13 of 39 GB/s).
    bool transient_lines_pay;
    // Lines asked for ahead belong in the second level, not the first. Worth 3 to 8 % of products and of attention over
    // bf16 caches on Intel's cores; on a Zen 5 attention was as fast either way, and products were not tried.
    bool ahead_into_level_2;
    // Rows whose int8 products of two 512-bit vectors are summed together. 6 leave registers for all that they need, and
    // fill two pipes whose dot products take 4 cycles (Zen 5: 89 of 89 %). Intel's take 5 to 6: 8 rows are worth 14 to
    // 26 % there, though f32 sums then wait in memory.
    int rows_together;
    // What prepares products (shifts, masks) has pipes of its own, and costs next to nothing beside them. Of use at 512 bits,
    // where Intel's two pipes share all of it.
    bool pipes_beside_products;
};
extern const Processor processor;

// Asks for a cache line that is read once, soon, and then not for long.
inline void ask_for_line(const void *p) {
    if (processor.transient_lines_pay) __builtin_prefetch(p, 0, 0);
    else __builtin_prefetch(p, 0, 2);
}

// Asks for `bytes` from p on, line by line, in the same way. Of addresses of two kinds of requests the compiler keeps a register
// each; in assembly they are parts of the instruction.
inline void ask_for_lines(const unsigned char *p, int64_t bytes) {
#if defined(__x86_64__)
    if (processor.transient_lines_pay)
        for (int64_t i = 0; i < bytes; i += 64) asm volatile("prefetchnta %0" : : "m"(p[i]));
    else
        for (int64_t i = 0; i < bytes; i += 64) asm volatile("prefetcht1 %0" : : "m"(p[i]));
#else
    for (int64_t i = 0; i < bytes; i += 64) ask_for_line(p + i);
#endif
}

// Asks for a cache line that is read soon, perhaps more than once.
inline void prefetch(const void *p) {
    if (processor.ahead_into_level_2) __builtin_prefetch(p, 0, 2);
    else __builtin_prefetch(p, 0, 3);
}

}  // namespace opsocket
