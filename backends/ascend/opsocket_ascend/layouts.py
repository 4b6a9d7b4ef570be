"""How the NPU's caches lie. No framework is imported here: layouts are data.

Layout "pages": planes of order (block, token, head, dim), the one in which `npu_scatter_pa_kv_cache` writes by slot and
`npu_fused_infer_attention_score` reads by block table. Scales of granularity token_head have a plane
(block, head, token), as the vendor's int8 decode wants them. A latent cache has its values, the first head_dim_v
channels, in plane "k" and the rest, the rotary key, in plane "k_rope": the operator wants two dense arrays.
"""

from __future__ import annotations

import math
from typing import Final

from opsocket.operators import CacheLayout, CacheSpec, KVFormat, Plane, Reason, dtype_info

KERNEL_BLOCK: Final = 128
"""Tokens in a block of the vendor's attention: what the field uses, and of prefill the smallest that is served."""

CODES: Final = ("f32", "f16", "bf16", "i8")


def refusals(cache: CacheSpec, layout: CacheLayout | None = None) -> tuple[Reason, ...]:
    """Why a cache can't be held here, or not in the layout asked for; empty when it can."""
    reasons: list[Reason] = []
    for name, fmt in (("k", cache.k), ("v", cache.v)):
        if fmt is None:
            continue
        if fmt.code not in CODES:
            reasons.append(Reason("kv_format", f"cache.{name}.code", fmt.code, list(CODES)))
        if fmt.zero_point:
            reasons.append(Reason("zero_point", f"cache.{name}.zero_point", True, False))
    if not reasons and layout is not None and layout != pages(cache):
        reasons.append(Reason("layout", "layout", layout.id, ["pages"]))
    return tuple(reasons)


def pages(cache: CacheSpec) -> CacheLayout:
    """The planes of a cache that `refusals` has nothing against."""
    planes = _planes("k", cache, cache.k, cache.head_dim_k - rotary_channels(cache))
    if rotary_channels(cache):
        shape = (cache.num_blocks, cache.block_size, cache.num_kv_heads, rotary_channels(cache))
        planes += (Plane("k_rope", shape, cache.k.code, ("block", "token", "head", "dim")),)
    if cache.v is not None:
        planes += _planes("v", cache, cache.v, cache.head_dim_v)
    total = sum(math.prod(plane.shape) * dtype_info(plane.dtype).itemsize for plane in planes)
    kernel_block = KERNEL_BLOCK if cache.block_size % KERNEL_BLOCK == 0 else 1
    return CacheLayout("pages", planes, kernel_block, bytes_per_block=total // cache.num_blocks)


def rotary_channels(cache: CacheSpec) -> int:
    """Channels of a latent cache's keys that are no values; 0 of other caches."""
    return cache.head_dim_k - cache.head_dim_v if cache.kind == "latent" else 0


def _planes(name: str, cache: CacheSpec, fmt: KVFormat, dim: int) -> tuple[Plane, ...]:
    shape = (cache.num_blocks, cache.block_size, cache.num_kv_heads, dim)
    codes = Plane(name, shape, fmt.code, ("block", "token", "head", "dim"))
    if fmt.granularity != "token_head":
        return (codes,)
    blocks, tokens, heads, _ = shape
    return (codes, Plane(f"{name}_scale", (blocks, heads, tokens), fmt.scale_dtype, ("block", "head", "token")))
