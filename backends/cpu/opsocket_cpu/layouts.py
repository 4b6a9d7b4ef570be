"""How this backend lays out a cache. No framework is imported here: layouts are data.

One layout, "planar": planes of order (head, block, token, dim), so that one head's keys of consecutive blocks are
consecutive rows of a matrix, ready to be multiplied, and a slot is a row number. Codes of less than a byte are packed
along dim, lowest bits first; scales of granularity token_head have a plane of their own.
"""

from __future__ import annotations

import math

from opsocket.operators import CacheLayout, CacheSpec, KVFormat, Plane, Reason, dtype_info

_PLANE_DTYPE = {"i8": "i8", "i4": "u8", "i2": "u8"}
_ORDER = ("head", "block", "token", "dim")


def refusals(cache: CacheSpec, layout: CacheLayout | None = None) -> tuple[Reason, ...]:
    """Why a cache can't be held here, or not in the layout asked for; empty when it can."""
    reasons = []
    for name, fmt, dim in (("k", cache.k, cache.head_dim_k), ("v", cache.v, cache.head_dim_v)):
        if fmt is None:
            continue
        if fmt.zero_point:
            reasons.append(Reason("zero_point", f"cache.{name}.zero_point", True, False))
        per_byte = 8 // min(fmt.bits, 8)
        if dim % per_byte:
            want = f"a multiple of {per_byte} for {fmt.code}"
            reasons.append(Reason("head_dim", f"cache.head_dim_{name}", dim, want))
    if not reasons and layout is not None and layout != planar(cache):
        reasons.append(Reason("layout", "layout", layout.id, [planar(cache).id]))
    return tuple(reasons)


def planar(cache: CacheSpec) -> CacheLayout:
    """The layout of a cache that `refusals` has nothing against."""
    planes = _planes("k", cache, cache.k, cache.head_dim_k)
    if cache.v is not None:
        planes += _planes("v", cache, cache.v, cache.head_dim_v)
    total = sum(math.prod(p.shape) * dtype_info(p.dtype).itemsize for p in planes)
    return CacheLayout("planar", planes, kernel_block_size=1, bytes_per_block=total // cache.num_blocks)


def _planes(name: str, cache: CacheSpec, fmt: KVFormat, dim: int) -> tuple[Plane, ...]:
    rows = (cache.num_kv_heads, cache.num_blocks, cache.block_size)
    width = dim * fmt.bits // 8 if fmt.bits < 8 else dim
    codes = Plane(name, (*rows, width), _PLANE_DTYPE.get(fmt.code, fmt.code), _ORDER)
    if fmt.granularity != "token_head":
        return (codes,)
    return (codes, Plane(f"{name}_scale", rows, fmt.scale_dtype, _ORDER[:3]))
