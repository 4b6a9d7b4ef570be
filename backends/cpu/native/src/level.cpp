// Which kernels a level has, and whether this processor runs it.
#include "dispatch.h"
#include "kernels.h"

#if OPSOCKET_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if OPSOCKET_NEON
#include <sys/auxv.h>

#include <asm/hwcap.h>
#endif

namespace opsocket {
namespace OPSOCKET_LEVEL {

static void none(const Command *, Worker &) {}

struct Table {
    Kernel by_op[OP_COUNT] = {};
    constexpr Table() {
        by_op[OP_NONE] = none;
#define KERNEL(op, command, name) by_op[op] = name;
#include "kernels.inc"
#undef KERNEL
    }
};

static constexpr Table table;

#if OPSOCKET_AMX
// Whether there are tiles of bytes and of bf16, and the kernel lets this process have them, which it has to be asked for.
static bool has_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned TILES = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return (d & TILES) == TILES && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

static bool runs_here() {
#if OPSOCKET_AMX
    if (!has_tiles()) return false;
#endif
#if defined(__AVX512BF16__)
    if (!__builtin_cpu_supports("avx512bf16")) return false;
#endif
#if OPSOCKET_AVX512
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
#elif OPSOCKET_AVX2
#if OPSOCKET_AVX_VNNI
    if (!__builtin_cpu_supports("avxvnni")) return false;
#endif
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#elif OPSOCKET_NEON
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP && getauxval(AT_HWCAP) & HWCAP_ASIMDHP;
#else
    return true;
#endif
}

}  // namespace OPSOCKET_LEVEL

#define OPSOCKET_JOIN(a, b) a##b
#define OPSOCKET_LEVEL_OBJECT(name) OPSOCKET_JOIN(level_, name)
#define OPSOCKET_TEXT(name) #name
#define OPSOCKET_LEVEL_NAME(name) OPSOCKET_TEXT(name)

extern const Level OPSOCKET_LEVEL_OBJECT(OPSOCKET_LEVEL);
const Level OPSOCKET_LEVEL_OBJECT(OPSOCKET_LEVEL) = {OPSOCKET_LEVEL_NAME(OPSOCKET_LEVEL),
                                                     OPSOCKET_LEVEL::table.by_op, OPSOCKET_LEVEL::runs_here};

}  // namespace opsocket
