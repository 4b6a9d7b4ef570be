"""cache_write into int8 pages, and cache_read: one launch each for k and for v."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch

from opsocket.operators import Array, Cache, CacheReadPlan, CacheReadSpec, CacheWritePlan, KVFormat, SlotBatch
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_ascend.device_array import DeviceArray
from opsocket_ascend.graph import Recordable
from opsocket_ascend.triton_provider.cache_kernels import read_tokens, write_tokens
from opsocket_ascend.triton_provider.tiles import programs, tile_of
from opsocket_triton.launch import launch


class TritonCacheWrite(Recordable, CacheWritePlan):
    """Quantized on the chip, and scattered by slot. Skipped tokens are not in the table, and cost nothing.

    Bytes per token: those of k and v read, their codes and scales written.
    """

    capture_level = "any"

    def _setup(self) -> None:
        self._table = DeviceArray(self.session, "i64", 2 * ((self.request.bounds.max_tokens or 0) + 1))

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots, np.int64)
        rows = np.flatnonzero(slots >= 0)
        head = np.array([[len(rows), 0]], np.int64)
        self._entries = self._table.write(np.concatenate([head, np.stack([rows, slots[rows]], 1)]))
        self._count = len(rows)

    def graph_form(self) -> Hashable:
        return self._count, self._table.address

    def _run(self, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> Cache:
        self._write(cache, "k", cache.spec.k, cache.k_scale, k)
        if v is not None and cache.spec.v is not None:
            self._write(cache, "v", cache.spec.v, cache.v_scale, v)
        return cache

    def _write(self, cache: Cache, name: str, fmt: KVFormat, scale: Array | None, values: torch.Tensor) -> None:
        _, heads, dim = values.shape
        tile = tile_of(heads, dim)
        launch(
            write_tokens,
            (programs(self.session, self._count * tile.per_row(heads)),),
            table=self._entries,
            values=values,
            plane=cache.planes[name],
            stored=cache.planes.get(f"{name}_scale"),
            static=scale,
            stride=values.stride(0),
            heads=heads,
            block_size=cache.spec.block_size,
            SCALE=fmt.granularity,
            DIM=dim,
            HEADS=tile.heads,
            WIDE=tile.wide,
        )


class TritonCacheRead(Recordable, CacheReadPlan):
    """A gather by slot, dequantized on the chip. Bytes per slot: its codes and scales read, k and v written."""

    capture_level = "any"

    def _setup(self) -> None:
        self._table = DeviceArray(self.session, "i64", (self.request.bounds.max_tokens or 0) + 1)

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots, np.int64)
        self._entries = self._table.write(np.concatenate([[len(slots)], slots]))
        self._count = len(slots)

    def graph_form(self) -> Hashable:
        return self._count, self._table.address

    def _run(self, cache: Cache) -> tuple[torch.Tensor, torch.Tensor | None]:
        k = self._read(cache, "k", cache.spec.k, cache.k_scale, cache.spec.head_dim_k)
        if cache.spec.v is None:
            return k, None
        return k, self._read(cache, "v", cache.spec.v, cache.v_scale, cache.spec.head_dim_v)

    def _read(self, cache: Cache, name: str, fmt: KVFormat, scale: Array | None, dim: int) -> torch.Tensor:
        spec, heads, plane = self.request.spec, cache.spec.num_kv_heads, cache.planes[name]
        assert isinstance(spec, CacheReadSpec)
        out = torch.empty(self._count, heads, dim, dtype=TORCH_DTYPES[spec.dtype], device=plane.device)
        tile = tile_of(heads, dim)
        launch(
            read_tokens,
            (programs(self.session, self._count * tile.per_row(heads)),),
            table=self._entries,
            out=out,
            plane=plane,
            stored=cache.planes.get(f"{name}_scale"),
            static=scale,
            heads=heads,
            block_size=cache.spec.block_size,
            SCALE=fmt.granularity,
            DIM=dim,
            HEADS=tile.heads,
            WIDE=tile.wide,
        )
        return out
