"""Keys and values of a group of requests as f32 matrices, a tile at a time, from wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass

import numpy as np
import torch

from opsocket.operators import AttentionBatch, Cache, CacheSpec, KVFormat, Ragged
from opsocket_cpu.native.cache import CacheSlots, read_command
from opsocket_cpu.native.library import library
from opsocket_cpu.torch_provider.cache import by_slot
from opsocket_cpu.torch_provider.codes import broadcast_scale, decode
from opsocket_cpu.torch_provider.grouping import Queries

_LINE = 16  # f32 in a cache line


@dataclass(frozen=True, eq=False)
class KeyRows:
    """Where the keys of a group lie: run, the first of consecutive rows of one request, or rows i64[R, span].

    The rows of a request with fewer keys than the longest of its group end in repetitions of its first key: a key
    that its queries see, so that what is multiplied by zero later is no garbage.
    """

    run: int | None
    rows: torch.Tensor | None


def key_rows(groups: Sequence[Queries], batch: AttentionBatch, cache: CacheSpec | None) -> list[KeyRows]:
    """Rows of the keys of every group: slots in a cache, or rows of contiguous k and v.

    The groups of one request are slices of one array, so that a long prefill does not keep an index for each.
    """
    ranges: dict[int, tuple[int, int]] = {}
    for group in groups:
        for request, first, span in zip(group.requests, group.first_key, group.span, strict=True):
            low, high = ranges.get(request, (first, first))
            ranges[request] = (min(low, first), max(high, first + span))
    rows = {r: _rows(batch, cache, r, np.arange(low, high)) for r, (low, high) in ranges.items()}

    def of(group: Queries) -> KeyRows:
        starts = [first - ranges[r][0] for r, first in zip(group.requests, group.first_key, strict=True)]
        parts = [rows[r][i : i + n] for r, i, n in zip(group.requests, starts, group.span, strict=True)]
        if len(parts) > 1:
            longest = max(len(part) for part in parts)
            return KeyRows(None, torch.from_numpy(np.stack([_lengthened(part, longest) for part in parts])))
        if (np.diff(parts[0]) == 1).all():
            return KeyRows(int(parts[0][0]) if len(parts[0]) else 0, None)
        return KeyRows(None, torch.from_numpy(parts[0])[None])

    return [of(group) for group in groups]


def _rows(batch: AttentionBatch, cache: CacheSpec | None, request: int, keys: np.ndarray) -> np.ndarray:
    """i64: the row of each of a request's keys."""
    if cache is None:
        assert batch.kv_indptr is not None
        return int(batch.kv_indptr[request]) + keys
    assert batch.block_table is not None
    blocks = np.asarray(batch.block_table[request][keys // cache.block_size], np.int64)
    return blocks * cache.block_size + keys % cache.block_size


def _lengthened(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, np.full(length - len(rows), rows[0])]) if len(rows) < length else rows


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


class TiledKeys:
    """Reads a cache of layout "tiles16" by the native `cache_read`, which dequantizes."""

    def __init__(self, cache: Cache, threads: int) -> None:
        self._cache, self._threads = cache, threads

    def tile(self, where: KeyRows, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """f32 k [Hkv * R, S, Dk] and v [Hkv * R, S, Dv] of keys [start, stop) of each request."""
        if where.rows is None:
            assert where.run is not None
            slots = np.arange(where.run + start, where.run + stop)[None]
        else:
            slots = where.rows[:, start:stop].numpy()
        spec, batch = self._cache.spec, CacheSlots()
        batch.set(np.ascontiguousarray(slots).ravel(), np.arange(slots.size))
        heads = slots.size, spec.num_kv_heads
        read = torch.empty(*heads, spec.head_dim_k), torch.empty(*heads, spec.head_dim_v)
        native = library()
        assert native is not None
        native.run_one(read_command(self._cache, read, addressof(batch), "f32"), self._threads)
        k, v = (x.unflatten(0, slots.shape).permute(2, 0, 1, 3).flatten(0, 1) for x in read)
        return k, v


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
        view = plane[:, None, where.run + start : where.run + stop]
        # A matrix product may sum in another order where rows begin off a cache line: the bits would tell the pages.
        return view if plane.dtype != torch.float32 or plane.shape[-1] % _LINE == 0 else view.clone()
    heads, slots = plane.shape[:2]
    rows = where.rows[:, start:stop]
    # One row of the flattened plane at a time is a plain copy; indexing the second dimension is several times slower.
    index = torch.arange(heads).mul_(slots).view(heads, 1, 1) + rows
    return plane.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)
