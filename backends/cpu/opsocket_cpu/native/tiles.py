"""A cache of layout "tiles16" as kernels take it: `KVTilesPair` of `src/commands_cache.h`, mirrored."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p

import torch

from opsocket.operators import Cache, ContractError, KVFormat
from opsocket_cpu.layouts import TILE, k_tile_bytes, v_tile_bytes

CODES = {"f32": 0, "f16": 1, "bf16": 2, "f8e4m3fn": 3, "f8e4m3fnuz": 4, "f8e5m2": 5, "i8": 6, "i4": 7, "i2": 8}
GRANULARITIES = {"none": 0, "tensor": 1, "head": 2, "channel": 3, "token_head": 4}
_SCALE_DTYPES = {"f32": 0, "f16": 1}


class KVTiles(Structure):
    """The keys or the values of one cache."""

    _fields_ = (
        ("data", c_void_p), ("scale", c_void_p), ("tile_bytes", c_int64),
        ("code", c_int32), ("granularity", c_int32), ("scale_dtype", c_int32), ("dim", c_int32),
    )  # fmt: skip


class KVTilesPair(Structure):
    """Keys and values. tiles: of 16 tokens in a block."""

    _fields_ = (("k", KVTiles), ("v", KVTiles), ("heads", c_int64), ("tiles", c_int64))


def tiles_of(name: str, cache: Cache) -> KVTilesPair:
    """A cache's tiles, which have to outlive the result. ContractError(name) for a cache of another layout."""
    if cache.layout.id != "tiles16":
        raise ContractError(name, "layout 'tiles16', the session's first choice", f"layout {cache.layout.id!r}")
    spec, planes = cache.spec, cache.planes
    assert spec.v is not None
    k = _tiles(planes["k"], cache.k_scale, spec.k, spec.head_dim_k, k_tile_bytes(spec.k, spec.head_dim_k))
    v = _tiles(planes["v"], cache.v_scale, spec.v, spec.head_dim_v, v_tile_bytes(spec.v, spec.head_dim_v))
    return KVTilesPair(k, v, spec.num_kv_heads, spec.block_size // TILE)


def _tiles(plane: torch.Tensor, scale: torch.Tensor | None, fmt: KVFormat, dim: int, tile_bytes: int) -> KVTiles:
    return KVTiles(
        plane.data_ptr(), 0 if scale is None else scale.data_ptr(), tile_bytes,
        CODES[fmt.code], GRANULARITIES[fmt.granularity], _SCALE_DTYPES[fmt.scale_dtype], dim,
    )  # fmt: skip
