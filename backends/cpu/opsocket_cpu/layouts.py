"""How this backend lays out a cache, preferred first. No framework is imported here: layouts are data.

"tiles16", of the native kernels: tiles of 16 tokens of one head, block after block, opaque: `native/src/tiles.h` has
the place of every element. Blocks have to be whole tiles; there have to be native kernels.

"planar", of the torch kernels: planes of order (head, block, token, dim), so that one head's keys of consecutive blocks
are consecutive rows of a matrix, ready to be multiplied, and a slot is a row number. Codes of less than a byte are
packed along dim, lowest bits first; scales of granularity token_head have a plane of their own.
"""

from __future__ import annotations

import math

from opsocket.operators import CacheLayout, CacheSpec, KVFormat, Plane, Reason, dtype_info
from opsocket_cpu.native.library import absence

TILE = 16
"""Tokens of a tile of layout "tiles16"; also its vectors' dwords."""

MAX_HEAD_DIM = 1 << 16
"""Of which the native kernels hold a token in the scratch memory that a thread has."""

_PLANE_DTYPE = {"i8": "i8", "i4": "u8", "i2": "u8"}
_ORDER = ("head", "block", "token", "dim")


def layouts_of(cache: CacheSpec) -> tuple[CacheLayout, ...]:
    """All in which a cache can be held here, preferred first."""
    tiles = () if absence() is not None or tiled_refusals(cache) else (tiled(cache),)
    return tiles if planar_refusals(cache) else (*tiles, planar(cache))


def refusals(cache: CacheSpec, layout: CacheLayout | None = None) -> tuple[Reason, ...]:
    """Why a cache can't be held here, or not in the layout asked for; empty when it can."""
    found = layouts_of(cache)
    if found:
        known = layout is None or layout in found
        return () if known else (Reason("layout", "layout", layout.id, [each.id for each in found]),)
    reasons = () if absence() is not None else tiled_refusals(cache)
    return tuple(dict.fromkeys((*reasons, *planar_refusals(cache))))


def kernel_refusals(id: str, cache: CacheSpec, layout: CacheLayout | None) -> tuple[Reason, ...]:
    """Why a kernel that knows layout `id` alone does not work on a cache in `layout`, None being the first choice."""
    if layout is not None and layout.id != id:
        return (Reason("layout", "layout", layout.id, [id]),)
    reasons = tiled_refusals(cache) if id == "tiles16" else planar_refusals(cache)
    if reasons:
        return reasons
    (own,) = (each for each in layouts_of(cache) if each.id == id)
    chosen = layout or layouts_of(cache)[0]
    return () if chosen == own else (Reason("layout", "layout", chosen.id, [id]),)


def tiled_refusals(cache: CacheSpec) -> tuple[Reason, ...]:
    """Why a cache can't be held in tiles; empty when it can."""
    reasons = list(_zero_points(cache))
    if cache.kind != "kv":
        reasons.append(Reason("layout", "cache.kind", cache.kind, "kv, in layout tiles16"))
    if cache.block_size % TILE:
        want = f"a multiple of {TILE}, in layout tiles16"
        reasons.append(Reason("layout", "cache.block_size", cache.block_size, want))
    for name, dim in (("k", cache.head_dim_k), ("v", cache.head_dim_v)):
        if dim > MAX_HEAD_DIM:
            reasons.append(Reason("head_dim", f"cache.head_dim_{name}", dim, f"at most {MAX_HEAD_DIM}"))
    return tuple(reasons)


def tiled(cache: CacheSpec) -> CacheLayout:
    """The tiles of a cache that `tiled_refusals` has nothing against."""
    assert cache.v is not None
    rows = (cache.num_blocks, cache.num_kv_heads, cache.block_size // TILE)
    sides = {"k": k_tile_bytes(cache.k, cache.head_dim_k), "v": v_tile_bytes(cache.v, cache.head_dim_v)}
    planes = tuple(Plane(name, (*rows, size), "u8", opaque_id="tiles16") for name, size in sides.items())
    return CacheLayout("tiles16", planes, TILE, bytes_per_block=rows[1] * rows[2] * sum(sides.values()))


def k_tile_bytes(fmt: KVFormat, dim: int) -> int:
    """Whole dwords of dims for each of 16 tokens, and a scale for each where it is stored."""
    return -(-dim * fmt.bits // 32) * 64 + _tile_scales(fmt)


def v_tile_bytes(fmt: KVFormat, dim: int) -> int:
    """16 tokens of each dim, dims in whole vectors, and a scale for each token where it is stored."""
    return -(-dim // TILE) * TILE * 2 * fmt.bits + _tile_scales(fmt)


def _tile_scales(fmt: KVFormat) -> int:
    return 64 if fmt.granularity == "token_head" else 0


def planar_refusals(cache: CacheSpec) -> tuple[Reason, ...]:
    """Why a cache can't be held in planes; empty when it can."""
    reasons = list(_zero_points(cache))
    for name, fmt, dim in (("k", cache.k, cache.head_dim_k), ("v", cache.v, cache.head_dim_v)):
        if fmt is None:
            continue
        per_byte = 8 // min(fmt.bits, 8)
        if dim % per_byte:
            want = f"a multiple of {per_byte} for {fmt.code}"
            reasons.append(Reason("head_dim", f"cache.head_dim_{name}", dim, want))
    return tuple(reasons)


def planar(cache: CacheSpec) -> CacheLayout:
    """The planes of a cache that `planar_refusals` has nothing against."""
    planes = _planes("k", cache, cache.k, cache.head_dim_k)
    if cache.v is not None:
        planes += _planes("v", cache, cache.v, cache.head_dim_v)
    total = sum(math.prod(p.shape) * dtype_info(p.dtype).itemsize for p in planes)
    return CacheLayout("planar", planes, kernel_block_size=1, bytes_per_block=total // cache.num_blocks)


def _zero_points(cache: CacheSpec) -> list[Reason]:
    formats = (("k", cache.k), ("v", cache.v))
    return [
        Reason("zero_point", f"cache.{name}.zero_point", True, False)
        for name, fmt in formats
        if fmt is not None and fmt.zero_point
    ]


def _planes(name: str, cache: CacheSpec, fmt: KVFormat, dim: int) -> tuple[Plane, ...]:
    rows = (cache.num_kv_heads, cache.num_blocks, cache.block_size)
    width = dim * fmt.bits // 8 if fmt.bits < 8 else dim
    codes = Plane(name, (*rows, width), _PLANE_DTYPE.get(fmt.code, fmt.code), _ORDER)
    if fmt.granularity != "token_head":
        return (codes,)
    return (codes, Plane(f"{name}_scale", rows, fmt.scale_dtype, _ORDER[:3]))
