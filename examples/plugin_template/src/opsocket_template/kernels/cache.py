"""Write, read, move and copy: a slot is a row of every plane."""

from __future__ import annotations

import numpy as np

from opsocket.operators import (
    BlockPairs,
    Cache,
    CacheCopyBlocksPlan,
    CacheMovePlan,
    CacheReadPlan,
    CacheWritePlan,
    ContractError,
    SlotBatch,
)
from opsocket_template.arrays import result
from opsocket_template.kernels.codes import by_slot, load, store


class CacheWrite(CacheWritePlan):
    """Rows whose slot is -1 are skipped; k and v may have more rows than there are slots."""

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots)
        self._rows = np.flatnonzero(slots >= 0)
        self._slots = slots[self._rows]

    def _run(self, cache: Cache, k: np.ndarray, v: np.ndarray | None) -> Cache:
        store(cache, "k", self._slots, k[self._rows])
        store(cache, "v", self._slots, v[self._rows])
        return cache


class CacheRead(CacheReadPlan):
    def _run(self, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
        k, v = (result(load(cache, name, self.batch.slots), self.request.spec.dtype, None) for name in ("k", "v"))
        return k, v


class CacheMove(CacheMovePlan):
    """The right side is a copy, complete before anything is written: overlap behaves as if buffered."""

    def _run(self, src: Cache, dst: Cache) -> Cache:
        _check_scales(src, dst)
        for name, plane in src.planes.items():
            by_slot(dst.planes[name])[self.batch.dst_slots] = by_slot(plane)[self.batch.src_slots]
        return dst


class CacheCopyBlocks(CacheCopyBlocksPlan):
    def _run(self, src: Cache, dst: Cache) -> Cache:
        _check_scales(src, dst)
        pairs: BlockPairs = self.batch
        for name, plane in src.planes.items():
            dst.planes[name][pairs.pairs[:, 1]] = plane[pairs.pairs[:, 0]]
        return dst


def _check_scales(src: Cache, dst: Cache) -> None:
    """Codes are copied as they are, so they must mean the same on both sides."""
    for name in ("k_scale", "v_scale"):
        ours, theirs = getattr(src, name), getattr(dst, name)
        if ours is not None and not np.array_equal(ours, theirs):
            raise ContractError(f"dst.{name}", "the static scales of src: codes are copied as they are", "others")
