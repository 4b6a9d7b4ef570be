"""How the GPU backends lay out a cache: layout "pages". No framework is imported here: layouts are data.

Planes of order (block, head, token, dim), so that the keys of one head and one block are a dense matrix; FlashInfer
calls it HND. Codes of less than a byte are packed along dim, code + 2^(bits - 1) in unsigned fields, lowest bits first;
f8 codes lie as bytes in planes of their own type; scales of granularity token_head have a plane (block, head, token).
"""

from __future__ import annotations

import math

from opsocket.operators import CacheLayout, CacheSpec, KVFormat, Plane, Reason, dtype_info

_PLANE_DTYPE = {"i8": "i8", "i4": "u8", "i2": "u8"}
_ORDER = ("block", "head", "token", "dim")


def refusals(cache: CacheSpec, layout: CacheLayout | None = None) -> tuple[Reason, ...]:
    """Why a cache can't be held here, or not in the layout asked for; empty when it can."""
    reasons: list[Reason] = []
    for name, fmt, dim in (("k", cache.k, cache.head_dim_k), ("v", cache.v, cache.head_dim_v)):
        if fmt is None:
            continue
        if fmt.zero_point:
            reasons.append(Reason("zero_point", f"cache.{name}.zero_point", True, False))
        per_byte = 8 // min(fmt.bits, 8)
        if dim % per_byte:
            want = f"a multiple of {per_byte} for {fmt.code}"
            reasons.append(Reason("head_dim", f"cache.head_dim_{name}", dim, want))
    if not reasons and layout is not None and layout != pages(cache):
        reasons.append(Reason("layout", "layout", layout.id, ["pages"]))
    return tuple(reasons)


def pages(cache: CacheSpec) -> CacheLayout:
    """The planes of a cache that `refusals` has nothing against."""
    planes = _planes("k", cache, cache.k, cache.head_dim_k)
    if cache.v is not None:
        planes += _planes("v", cache, cache.v, cache.head_dim_v)
    total = sum(math.prod(plane.shape) * dtype_info(plane.dtype).itemsize for plane in planes)
    return CacheLayout("pages", planes, kernel_block_size=1, bytes_per_block=total // cache.num_blocks)


def _planes(name: str, cache: CacheSpec, fmt: KVFormat, dim: int) -> tuple[Plane, ...]:
    rows = (cache.num_blocks, cache.num_kv_heads, cache.block_size)
    width = dim * fmt.bits // 8 if fmt.bits < 8 else dim
    codes = Plane(name, (*rows, width), _PLANE_DTYPE.get(fmt.code, fmt.code), _ORDER)
    if fmt.granularity != "token_head":
        return (codes,)
    return (codes, Plane(f"{name}_scale", rows, fmt.scale_dtype, _ORDER[:3]))
