"""Keys and values of a group of requests as f32 matrices, a tile at a time, from wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from opsocket.operators import AttentionBatch, Cache, CacheSpec, KVFormat, Ragged
from opsocket_cpu.torch_provider.cache import by_slot
from opsocket_cpu.torch_provider.codes import broadcast_scale, decode
from opsocket_cpu.torch_provider.grouping import Queries


@dataclass(frozen=True, eq=False)
class KeyRows:
    """Where the keys of a group lie: run, the first of consecutive rows of one request, or rows i64[R, span].

    The rows of a request with fewer keys than the longest of its group end in repetitions of its first key: a key
    that its queries see, so that what is multiplied by zero later is no garbage.
    """

    run: int | None
    rows: torch.Tensor | None


def key_rows(queries: Queries, batch: AttentionBatch, cache: CacheSpec | None) -> KeyRows:
    """Rows of the group's keys: slots in a cache, or rows of contiguous k and v."""
    offsets = np.arange(int(queries.span.max()))
    keys = queries.first_key[:, None] + np.where(offsets < queries.span[:, None], offsets, 0)
    if cache is None:
        assert batch.kv_indptr is not None
        rows = np.asarray(batch.kv_indptr, np.int64)[queries.requests, None] + keys
    else:
        assert batch.block_table is not None
        blocks = np.asarray(batch.block_table, np.int64)[queries.requests[:, None], keys // cache.block_size]
        rows = blocks * cache.block_size + keys % cache.block_size
    if len(rows) == 1 and (np.diff(rows) == 1).all():
        return KeyRows(int(rows[0, 0]) if rows.size else 0, None)
    return KeyRows(None, torch.from_numpy(rows))


class CachedKeys:
    """Reads a planar cache, dequantizing what it gathers."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def tile(self, where: KeyRows, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """f32 k [Hkv * R, S, Dk] and v [Hkv * R, S, Dv] of keys [start, stop) of each request."""
        cache = self._cache
        k = self._read("k", cache.spec.k, cache.k_scale, where, start, stop)
        if cache.spec.v is None:
            return k, k[..., : cache.spec.head_dim_v]
        return k, self._read("v", cache.spec.v, cache.v_scale, where, start, stop)

    def _read(
        self, name: str, fmt: KVFormat, scale: torch.Tensor | None, where: KeyRows, start: int, stop: int
    ) -> torch.Tensor:
        plane, stored = self._cache.planes[name], self._cache.planes.get(f"{name}_scale")
        codes = _take(by_slot(plane), where, start, stop).view(plane.dtype)
        scales = None if stored is None else _take(by_slot(stored), where, start, stop)
        return decode(codes, fmt, scales, broadcast_scale(scale, fmt, 4)).flatten(0, 1)


class ContiguousKeys:
    """Reads k and v [Tk, Hkv, D] as they are."""

    def __init__(self, kv: Ragged) -> None:
        self._kv = kv

    def tile(self, where: KeyRows, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """f32 k [Hkv * R, S, Dk] and v [Hkv * R, S, Dv] of keys [start, stop) of each request."""
        k, v = (self._read(x, where, start, stop) for x in self._kv)
        return k, v

    @staticmethod
    def _read(x: torch.Tensor, where: KeyRows, start: int, stop: int) -> torch.Tensor:
        if where.rows is None:
            assert where.run is not None
            return x[where.run + start : where.run + stop].transpose(0, 1).float()
        rows = where.rows[:, start:stop]
        taken = x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        return taken.permute(2, 0, 1, 3).float().flatten(0, 1)


def _take(plane: torch.Tensor, where: KeyRows, start: int, stop: int) -> torch.Tensor:
    """[Hkv, R, S, ...] of a plane [Hkv, slots, ...]: a view where the slots are consecutive."""
    if where.rows is None:
        assert where.run is not None
        return plane[:, None, where.run + start : where.run + stop]
    heads, slots = plane.shape[:2]
    rows = where.rows[:, start:stop]
    # One row of the flattened plane at a time is a plain copy; indexing the second dimension is several times slower.
    index = torch.arange(heads).mul_(slots).view(heads, 1, 1) + rows
    return plane.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)
