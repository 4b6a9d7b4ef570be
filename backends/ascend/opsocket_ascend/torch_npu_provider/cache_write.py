"""cache_write by `npu_scatter_pa_kv_cache`."""

from __future__ import annotations

import numpy as np
import torch

from opsocket.operators import Cache, CacheWritePlan, SlotBatch
from opsocket_ascend.torch_npu_provider import strict


class NpuCacheWrite(CacheWritePlan):
    """Keys and values in one call, as they are. Rows whose slot is -1 are left out on the host."""

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots, np.int64)
        kept = np.flatnonzero(slots >= 0)
        self._kept = None if len(kept) == len(slots) else self.session.upload(kept)
        self._given = len(slots)
        self._slots: torch.Tensor = self.session.upload(slots[kept])

    def _run(self, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> Cache:
        assert v is not None
        if len(self._slots):
            strict.scatter_cache(self._rows(k), self._rows(v), cache.planes["k"], cache.planes["v"], self._slots)
        return cache

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        return (values[: self._given] if self._kept is None else values.index_select(0, self._kept)).contiguous()
