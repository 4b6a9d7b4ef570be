"""Planes of a cache as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from opsocket.operators import CacheSpec


@dataclass(frozen=True)
class Tile:
    """wide: columns, a power of two that holds a row of k or v. rows, warps: of a program."""

    wide: int
    rows: int
    warps: int


def tile_of(spec: CacheSpec, tokens: int) -> Tile:
    """16 elements for each lane of a warp of 32: more would leave the registers across the division's own code. Four
    warps, and sixteen where there are programs enough."""
    wide = triton.next_power_of_2(spec.head_dim_k if spec.v is None else max(spec.head_dim_k, spec.head_dim_v))
    many = tokens * spec.num_kv_heads * wide >= 2**19
    return Tile(wide, max(1, (8192 if many else 2048) // wide), 16 if many else 4)


def as_bytes(plane: torch.Tensor) -> torch.Tensor:
    """An f8 plane as uint8: kernels read and write its codes as bits; any other plane as it is."""
    return plane.view(torch.uint8) if plane.dtype.is_floating_point and plane.element_size() == 1 else plane
