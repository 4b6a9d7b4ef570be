#include "dispatch.h"

#include <cstring>

#include "processor.h"

namespace opsocket {

#if defined(__x86_64__)
extern const Level level_amx, level_avx512_bf16, level_avx512_vnni, level_avx_vnni, level_avx2;
#elif defined(__aarch64__)
extern const Level level_neon;
#endif
extern const Level level_portable;

#if defined(__x86_64__)
constexpr int COUNT = 6;
static const Level *const usual[COUNT] = {&level_amx, &level_avx512_bf16, &level_avx512_vnni, &level_avx_vnni, &level_avx2,
                                             &level_portable};
static const Level *const by_f32[COUNT] = {&level_amx, &level_avx512_vnni, &level_avx512_bf16, &level_avx_vnni, &level_avx2,
                                              &level_portable};
#elif defined(__aarch64__)
constexpr int COUNT = 2;
static const Level *const usual[COUNT] = {&level_neon, &level_portable};
static const Level *const *const by_f32 = usual;
#else
constexpr int COUNT = 1;
static const Level *const usual[COUNT] = {&level_portable};
static const Level *const *const by_f32 = usual;
#endif

static const Level *in_force = nullptr;

const Level *const *levels() { return processor.bf16_dots_pay ? usual : by_f32; }
int level_count() { return COUNT; }

bool use_level(const char *name) {
    for (int i = 0; i < COUNT; i++) {
        const Level *level = levels()[i];
        if (name && *name && std::strcmp(name, level->name)) continue;
        if (!level->runs_here()) continue;
        in_force = level;
        return true;
    }
    return false;
}

const char *level_in_force() { return in_force ? in_force->name : ""; }

Kernel kernel(int32_t op) { return in_force->kernels[op]; }

}  // namespace opsocket
