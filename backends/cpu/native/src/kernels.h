// The kernels of one level: all that includes this is compiled once per level, in a namespace of that name.
#pragma once
#include "commands.h"
#include "pool.h"
#include "simd.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

#define KERNEL(op, command, name) void name(const Command *, Worker &);
#include "kernels.inc"
#undef KERNEL

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
