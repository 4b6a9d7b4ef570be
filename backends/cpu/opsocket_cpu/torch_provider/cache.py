"""Write, read, move and copy over a planar cache: a slot is a row of every plane, a block a run of rows."""

from __future__ import annotations

import torch

from opsocket.operators import (
    BlockPairs,
    Cache,
    CacheCopyBlocksPlan,
    CacheMovePlan,
    CacheReadPlan,
    CacheReadSpec,
    CacheWritePlan,
    KVFormat,
    MoveBatch,
    SlotBatch,
)
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.static_scales import check_same_scales
from opsocket_cpu.torch_provider.codes import broadcast_scale, decode, encode


def by_slot(plane: torch.Tensor) -> torch.Tensor:
    """A plane [Hkv, blocks, tokens, ...] as rows by slot [Hkv, slots, ...]: a view, never a copy."""
    heads, blocks, tokens, *rest = plane.shape
    return _as_bytes(plane.view(heads, blocks * tokens, *rest))


class TorchCacheWrite(CacheWritePlan):
    """Quantizes the kept rows in f32 and scatters them by slot."""

    def _update(self, batch: SlotBatch) -> None:
        slots = torch.tensor(batch.slots, dtype=torch.int64)
        self._rows = None if bool((slots >= 0).all()) else torch.nonzero(slots >= 0).flatten()
        self._slots = slots if self._rows is None else slots[self._rows]
        self._given = len(slots)

    def _run(self, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> Cache:
        self._write(cache, "k", cache.spec.k, cache.k_scale, k)
        if v is not None and cache.spec.v is not None:
            self._write(cache, "v", cache.spec.v, cache.v_scale, v)
        return cache

    def _write(self, cache: Cache, name: str, fmt: KVFormat, scale: torch.Tensor | None, values: torch.Tensor) -> None:
        rows = values[: self._given] if self._rows is None else values[self._rows]
        by_head = rows.transpose(0, 1)
        codes, stored = encode(by_head.float() if fmt.is_quantized else by_head, fmt, broadcast_scale(scale, fmt, 3))
        by_slot(cache.planes[name]).index_copy_(1, self._slots, _as_bytes(codes))
        if stored is not None:
            by_slot(cache.planes[f"{name}_scale"]).index_copy_(1, self._slots, stored)


class TorchCacheRead(CacheReadPlan):
    """Gathers rows by slot and dequantizes them."""

    def _update(self, batch: SlotBatch) -> None:
        self._slots = torch.tensor(batch.slots, dtype=torch.int64)

    def _run(self, cache: Cache) -> tuple[torch.Tensor, torch.Tensor | None]:
        k = self._read(cache, "k", cache.spec.k, cache.k_scale)
        return k, None if cache.spec.v is None else self._read(cache, "v", cache.spec.v, cache.v_scale)

    def _read(self, cache: Cache, name: str, fmt: KVFormat, scale: torch.Tensor | None) -> torch.Tensor:
        spec = self.request.spec
        assert isinstance(spec, CacheReadSpec)
        plane = cache.planes[name]
        codes = by_slot(plane).index_select(1, self._slots).view(plane.dtype)
        stored = cache.planes.get(f"{name}_scale")
        stored = None if stored is None else by_slot(stored).index_select(1, self._slots)
        values = decode(codes, fmt, stored, broadcast_scale(scale, fmt, 3))
        return values.transpose(0, 1).to(TORCH_DTYPES[spec.dtype]).contiguous()


class TorchCacheMove(CacheMovePlan):
    """Copies codes and scales, gathered before anything is scattered."""

    def _update(self, batch: MoveBatch) -> None:
        self._src = torch.tensor(batch.src_slots, dtype=torch.int64)
        self._dst = torch.tensor(batch.dst_slots, dtype=torch.int64)

    def _run(self, src: Cache, dst: Cache) -> Cache:
        check_same_scales(src, dst)
        for name, plane in src.planes.items():
            by_slot(dst.planes[name]).index_copy_(1, self._dst, by_slot(plane).index_select(1, self._src))
        return dst


class TorchCacheCopyBlocks(CacheCopyBlocksPlan):
    """Copies whole blocks of every plane, gathered before anything is scattered."""

    def _update(self, batch: BlockPairs) -> None:
        pairs = torch.tensor(batch.pairs, dtype=torch.int64)
        self._src, self._dst = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()

    def _run(self, src: Cache, dst: Cache) -> Cache:
        check_same_scales(src, dst)
        for name, plane in src.planes.items():
            source, target = _as_bytes(plane), _as_bytes(dst.planes[name])
            target.index_copy_(1, self._dst, source.index_select(1, self._src))
        return dst


def _as_bytes(plane: torch.Tensor) -> torch.Tensor:
    """fp8 and int8 as bytes: torch can't index the former."""
    return plane.view(torch.uint8) if plane.element_size() == 1 else plane
