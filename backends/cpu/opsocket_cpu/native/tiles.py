"""A cache of layout "tiles16" as kernels take it: `KVTilesPair` of `src/commands_cache.h`, mirrored."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p

from opsocket.operators import Cache, CacheSpec, ContractError, KVFormat
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


class TileFacts:
    """What the spec of a cache says of its tiles: all numbers of a `KVTilesPair` but addresses."""

    def __init__(self, spec: CacheSpec) -> None:
        assert spec.v is not None
        self._k = _facts(spec.k, spec.head_dim_k, k_tile_bytes(spec.k, spec.head_dim_k))
        self._v = _facts(spec.v, spec.head_dim_v, v_tile_bytes(spec.v, spec.head_dim_v))
        self._both = (spec.num_kv_heads, spec.block_size // TILE)

    def numbers(self, name: str, cache: Cache) -> tuple[int, ...]:
        """Those of a cache's `KVTilesPair`, in order, for `Command.pack`. The cache has to outlive what is made of it.

        ContractError(name) for a cache of another layout.
        """
        if cache.layout.id != "tiles16":
            raise ContractError(name, "layout 'tiles16', the session's first choice", f"layout {cache.layout.id!r}")
        planes, k_scale, v_scale = cache.planes, cache.k_scale, cache.v_scale
        return (
            planes["k"].data_ptr(), 0 if k_scale is None else k_scale.data_ptr(), *self._k,
            planes["v"].data_ptr(), 0 if v_scale is None else v_scale.data_ptr(), *self._v, *self._both,
        )  # fmt: skip


NUMBERS = 16
"""Of a `KVTilesPair`."""


def tiles_of(name: str, cache: Cache) -> KVTilesPair:
    """A cache's tiles, which have to outlive the result. ContractError(name) for a cache of another layout."""
    numbers = TileFacts(cache.spec).numbers(name, cache)
    return KVTilesPair(KVTiles(*numbers[:7]), KVTiles(*numbers[7:14]), *numbers[14:])


def _facts(fmt: KVFormat, dim: int, tile_bytes: int) -> tuple[int, ...]:
    return tile_bytes, CODES[fmt.code], GRANULARITIES[fmt.granularity], _SCALE_DTYPES[fmt.scale_dtype], dim
