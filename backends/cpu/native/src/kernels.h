// The kernels of one level: all that includes this is compiled once per level, in a namespace of that name.
#pragma once
#include "commands.h"
#include "pool.h"
#include "simd.h"

// Products have no use for instructions of bf16 but in what they store, and take the compiler the longest: level
// avx512_bf16 has avx512_vnni's. Level amx has kernels of its own for what its tiles multiply, and avx512_vnni's for all else,
// few rows of these among it.
#define OPSOCKET_OWN_PRODUCTS (OPSOCKET_AMX || !OPSOCKET_AVX512_BF16)

#define OPSOCKET_KERNEL(op, command, name) void name(const Command *, Worker &);
#define OPSOCKET_OF_VNNI(op, command, name) using avx512_vnni::name;

namespace opsocket {
#if OPSOCKET_AVX512
namespace avx512_vnni {

#define KERNEL OPSOCKET_KERNEL
#include "kernels.inc"
#undef KERNEL

}  // namespace avx512_vnni
#endif
namespace OPSOCKET_LEVEL {

#if OPSOCKET_AMX
#define KERNEL OPSOCKET_OF_VNNI
#define PRODUCT_KERNEL OPSOCKET_KERNEL
#define TILED_KERNEL OPSOCKET_KERNEL
#else
#define KERNEL OPSOCKET_KERNEL
#if !OPSOCKET_OWN_PRODUCTS
#define PRODUCT_KERNEL OPSOCKET_OF_VNNI
#endif
#endif
#include "kernels.inc"
#undef KERNEL

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
