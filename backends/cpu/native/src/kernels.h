// The kernels of one level: all that includes this is compiled once per level, in a namespace of that name.
#pragma once
#include "commands.h"
#include "pool.h"
#include "simd.h"

// Products have no use for instructions of bf16 but in what they store, and take the compiler the longest: level
// avx512_bf16 has avx512_vnni's.
#define OPSOCKET_OWN_PRODUCTS !OPSOCKET_AVX512_BF16

namespace opsocket {
#if !OPSOCKET_OWN_PRODUCTS
namespace avx512_vnni {

#define KERNEL(op, command, name)
#define SHARED_KERNEL(op, command, name) void name(const Command *, Worker &);
#include "kernels.inc"
#undef KERNEL

}  // namespace avx512_vnni
#endif
namespace OPSOCKET_LEVEL {

#if !OPSOCKET_OWN_PRODUCTS
#define SHARED_KERNEL(op, command, name) using avx512_vnni::name;
#endif
#define KERNEL(op, command, name) void name(const Command *, Worker &);
#include "kernels.inc"
#undef KERNEL

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
