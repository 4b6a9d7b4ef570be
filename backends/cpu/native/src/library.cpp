// The library's door: plain C, so that no Python header and no particular Python is needed.
#include "commands.h"
#include "dispatch.h"
#include "pack.h"
#include "pool.h"

using namespace opsocket;

#define EXPORT extern "C" __attribute__((visibility("default")))

// Which sources this is of, by the build: modules beside other sources must not call it, since structs and
// packed weights cross the border by their layout alone.
EXPORT int32_t opsocket_border() { return OPSOCKET_BORDER; }

// Bytes of an operator's command as this library was compiled; 0 for an operator that it lacks.
EXPORT int64_t opsocket_command_size(int32_t op) {
    switch (op) {
        case OP_NONE: return sizeof(Command);
#define KERNEL(op, command, name) case op: return sizeof(command);
#include "kernels.inc"
#undef KERNEL
        default: return 0;
    }
}

// Take the instruction-set level of that name, "" for the best; its name, or null where it can't be had.
EXPORT const char *opsocket_use_level(const char *name) { return use_level(name) ? level_in_force() : nullptr; }

EXPORT int32_t opsocket_level_count() { return level_count(); }
EXPORT const char *opsocket_level_name(int32_t i) { return levels()[i]->name; }
EXPORT int32_t opsocket_level_runs_here(int32_t i) { return levels()[i]->runs_here(); }

// 0: done. 1: no memory or thread to be had. 2: a command of an operator that this library lacks. Nothing ran then.
EXPORT int32_t opsocket_run(const Command *const *commands, int64_t count, int32_t threads) {
    for (int64_t i = 0; i < count; i++)
        if (commands[i]->op < 0 || commands[i]->op >= OP_COUNT || !kernel(commands[i]->op)) return 2;
    return run(commands, count, threads) ? 0 : 1;
}

EXPORT int32_t opsocket_run_one(const Command *command, int32_t threads) { return opsocket_run(&command, 1, threads); }

// pack_codes and pack_floats of pack.h.
EXPORT void opsocket_pack_codes(const Panels *weight, const uint8_t *codes, int64_t columns, int64_t first, int64_t rows) {
    pack_codes(*weight, codes, columns, first, rows);
}
EXPORT void opsocket_pack_floats(uint8_t *panels, const uint8_t *floats, int64_t k, int64_t bytes, int32_t pairs,
                                 int64_t first, int64_t rows) {
    pack_floats(panels, floats, k, bytes, pairs != 0, first, rows);
}
