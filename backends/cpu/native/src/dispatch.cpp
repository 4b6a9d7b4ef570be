#include "dispatch.h"

#include <cstring>

namespace opsocket {

#if defined(__x86_64__)
extern const Level level_avx512_bf16, level_avx512_vnni, level_avx2;
#elif defined(__aarch64__)
extern const Level level_neon;
#endif
extern const Level level_portable;

static const Level *const all[] = {
#if defined(__x86_64__)
    &level_avx512_bf16, &level_avx512_vnni, &level_avx2,
#elif defined(__aarch64__)
    &level_neon,
#endif
    &level_portable,
};

static const Level *in_force = nullptr;

const Level *const *levels() { return all; }
int level_count() { return int(sizeof all / sizeof all[0]); }

bool use_level(const char *name) {
    for (const Level *level : all) {
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
