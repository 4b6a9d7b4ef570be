"""Write, read, move and copy over a cache of layout "tiles16". A batch keeps its address: commands point at it."""

from __future__ import annotations

from ctypes import Structure, addressof, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import torch

from opsocket.operators import (
    BlockPairs,
    Cache,
    CacheCopyBlocksPlan,
    CacheMovePlan,
    CacheReadPlan,
    CacheReadSpec,
    CacheWritePlan,
    CacheWriteSpec,
    MoveBatch,
    SlotBatch,
)
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.layouts import TILE
from opsocket_cpu.native.batch import BatchArrays
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan, address
from opsocket_cpu.native.tiles import KVTilesPair, TileFacts, tiles_of
from opsocket_cpu.static_scales import check_same_scales

OWN_BYTES = 2 << 20
"""Of scratch memory that every thread has: `pool.h`."""

MOVE_BYTES = 64
"""Of scratch memory for each token or block that is moved within a cache as if buffered: `commands_cache.h`."""


_FIRST = np.zeros(1, np.int64)


class CacheSlots(Structure):
    """`CacheSlots` of commands_cache.h, and the arrays that it points at."""

    _fields_ = (("count", c_int64), ("slots", c_void_p), ("rows", c_void_p))
    _arrays: BatchArrays | None = None

    def set(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """Both of one length, copied."""
        if self._arrays is None:
            self._arrays = BatchArrays(np.int64, np.int64)
        addresses = self._arrays.take((slots, rows))
        if addresses is not None:
            self.__init__(len(slots), *addresses)  # type: ignore[misc]


class CacheMoves(Structure):
    """`CacheMoves` of commands_cache.h, and the arrays that it points at."""

    _fields_ = (
        ("count", c_int64), ("src", c_void_p), ("dst", c_void_p),
        ("scratch", c_void_p), ("scratch_bytes", c_int64), ("overlaps", c_int32),
    )  # fmt: skip

    def set(self, src: np.ndarray, dst: np.ndarray, threads: int) -> None:
        """i64 both; kept."""
        self.overlaps = bool(np.isin(src, dst).any())
        need = len(src) * MOVE_BYTES if self.overlaps else 0
        scratch = np.empty(threads * need, np.uint8) if need > OWN_BYTES else None
        self._arrays = src, dst, scratch
        self.count, self.src, self.dst = len(src), src.ctypes.data, dst.ctypes.data
        self.scratch, self.scratch_bytes = None if scratch is None else scratch.ctypes.data, need


class CacheWriteCommand(Command):
    _fields_ = (
        ("cache", KVTilesPair),
        ("k", c_void_p), ("k_stride", c_int64),
        ("v", c_void_p), ("v_stride", c_int64),
        ("batch", c_void_p), ("dtype", c_int32),
    )  # fmt: skip


class CacheReadCommand(Command):
    _fields_ = (("cache", KVTilesPair), ("k", c_void_p), ("v", c_void_p), ("batch", c_void_p), ("dtype", c_int32))


class CacheMoveCommand(Command):
    _fields_ = (("src", KVTilesPair), ("dst", KVTilesPair), ("batch", c_void_p))


class CacheCopyBlocksCommand(Command):
    _fields_ = (("src", c_void_p * 2), ("dst", c_void_p * 2), ("block_bytes", c_int64 * 2), ("batch", c_void_p))


class NativeCacheWrite(NativePlan, CacheWritePlan):
    any_rows = True

    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, CacheWriteSpec)
        self._dtype, self._batch = DTYPES[self.request.spec.dtype], CacheSlots()
        self._tiles = TileFacts(self.cache_spec)

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots)
        if len(slots) == 1 and slots[0] >= 0:
            self._batch.set(slots, _FIRST)
            return
        rows = np.flatnonzero(slots >= 0)
        slots = slots[rows]
        tiles = slots // TILE
        if (tiles[1:] < tiles[:-1]).any():
            order = np.argsort(tiles, kind="stable")
            slots, rows = slots[order], rows[order]
        self._batch.set(slots, rows)

    def _outputs(self, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> Cache:
        return cache

    def _command(self, result: Cache, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> bytes:
        assert v is not None
        return CacheWriteCommand.pack(
            Op.CACHE_WRITE, 1, 0, *self._tiles.numbers("cache", cache),
            k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0), addressof(self._batch), self._dtype,
        )  # fmt: skip


class NativeCacheRead(NativePlan, CacheReadPlan):
    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, CacheReadSpec)
        self._dtype, self._batch = self.request.spec.dtype, CacheSlots()

    def _update(self, batch: SlotBatch) -> None:
        self._batch.set(np.asarray(batch.slots), np.arange(len(batch.slots)))

    def _outputs(self, cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
        spec, dtype = self.cache_spec, TORCH_DTYPES[self._dtype]
        heads = self._batch.count, spec.num_kv_heads
        return torch.empty(*heads, spec.head_dim_k, dtype=dtype), torch.empty(*heads, spec.head_dim_v, dtype=dtype)

    def _command(self, result: tuple[torch.Tensor, torch.Tensor], cache: Cache) -> Command:
        return read_command(cache, result, addressof(self._batch), self._dtype)


def read_command(cache: Cache, result: tuple[torch.Tensor, torch.Tensor], batch: int, dtype: str) -> Command:
    """Reads the tokens of a `CacheSlots` at the address `batch` into dense k and v."""
    k, v = result
    tiles = tiles_of("cache", cache)
    return CacheReadCommand(Op.CACHE_READ, 1, 0, tiles, k.data_ptr(), v.data_ptr(), batch, DTYPES[dtype])


class NativeCacheMove(NativePlan, CacheMovePlan):
    def _setup(self) -> None:
        super()._setup()
        self._batch = CacheMoves()

    def _update(self, batch: MoveBatch) -> None:
        src, dst = np.array(batch.src_slots, np.int64), np.array(batch.dst_slots, np.int64)
        order = np.argsort(dst)
        self._batch.set(src[order], dst[order], self._threads)

    def _outputs(self, src: Cache, dst: Cache) -> Cache:
        return dst

    def _command(self, result: Cache, src: Cache, dst: Cache) -> Command:
        check_same_scales(src, dst)
        tiles = tiles_of("src", src), tiles_of("dst", dst)
        return CacheMoveCommand(Op.CACHE_MOVE, 1, 0, *tiles, addressof(self._batch))


class NativeCacheCopyBlocks(NativePlan, CacheCopyBlocksPlan):
    def _setup(self) -> None:
        super()._setup()
        self._batch = CacheMoves()

    def _update(self, batch: BlockPairs) -> None:
        pairs = np.array(batch.pairs, np.int64)
        self._batch.set(pairs[:, 0].copy(), pairs[:, 1].copy(), self._threads)

    def _outputs(self, src: Cache, dst: Cache) -> Cache:
        return dst

    def _command(self, result: Cache, src: Cache, dst: Cache) -> Command:
        check_same_scales(src, dst)
        for name, cache in (("src", src), ("dst", dst)):
            tiles_of(name, cache)
        planes: Any = [[cache.planes[name] for name in "kv"] for cache in (src, dst)]
        addresses = [(c_void_p * 2)(*map(address, side)) for side in planes]
        sizes = (c_int64 * 2)(*(plane[0].numel() for plane in planes[0]))
        return CacheCopyBlocksCommand(Op.CACHE_COPY_BLOCKS, 1, 0, *addresses, sizes, addressof(self._batch))
