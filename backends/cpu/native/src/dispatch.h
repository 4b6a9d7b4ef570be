// Every kernel is compiled once for each level of instructions; this picks the level when the library is first used.
#pragma once
#include "commands.h"
#include "pool.h"

namespace opsocket {

using Kernel = void (*)(const Command *, Worker &);

// One level's kernels, by `Op`. A null entry: this level has no such kernel, and asking for it is a mistake.
struct Level {
    const char *name;
    const Kernel *kernels;
    bool (*runs_here)();
};

// The kernel of the level in force.
Kernel kernel(int32_t op);

// The levels compiled in, best first on this processor.
const Level *const *levels();
int level_count();

// Take a level by name: false where it is not compiled in or this processor lacks it. Null or "": the best there is.
bool use_level(const char *name);
const char *level_in_force();

}  // namespace opsocket
