"""How a cache lies in memory. A layout is declared, never guessed from shapes, and is data: nothing is imported for it.

One layout, "paged": planes of order (block, token, head, dim), so that a slot, block * block_size + offset, is a row.
Granularity token_head has a scale plane besides.
"""

from __future__ import annotations

import math

from opsocket.operators import CacheLayout, CacheSpec, KVFormat, Plane, Reason, dtype_info

CODES = ["f32", "f16", "i8"]
_ORDER = ("block", "token", "head", "dim")


def refusals(cache: CacheSpec, layout: CacheLayout | None = None) -> tuple[Reason, ...]:
    """Why a cache can't be held here, or not in the layout asked for; empty when it can."""
    if cache.kind != "kv":
        return (Reason("kind", "cache.kind", cache.kind, ["kv"]),)
    reasons = []
    for name, fmt in (("k", cache.k), ("v", cache.v)):
        if fmt.code not in CODES:
            reasons.append(Reason("code", f"cache.{name}.code", fmt.code, CODES))
        if fmt.zero_point:
            reasons.append(Reason("zero_point", f"cache.{name}.zero_point", True, False))
    if not reasons and layout is not None and layout != paged(cache):
        reasons.append(Reason("layout", "layout", layout.id, [paged(cache).id]))
    return tuple(reasons)


def paged(cache: CacheSpec) -> CacheLayout:
    """The layout of a cache that `refusals` has nothing against."""
    planes = (*_planes("k", cache, cache.k, cache.head_dim_k), *_planes("v", cache, cache.v, cache.head_dim_v))
    nbytes = sum(math.prod(plane.shape) * dtype_info(plane.dtype).itemsize for plane in planes)
    return CacheLayout("paged", planes, kernel_block_size=1, bytes_per_block=nbytes // cache.num_blocks)


def _planes(name: str, cache: CacheSpec, fmt: KVFormat, dim: int) -> tuple[Plane, ...]:
    rows = (cache.num_blocks, cache.block_size, cache.num_kv_heads)
    codes = Plane(name, (*rows, dim), fmt.code, _ORDER)
    if fmt.granularity != "token_head":
        return (codes,)
    return (codes, Plane(f"{name}_scale", rows, fmt.scale_dtype, _ORDER[:3]))
