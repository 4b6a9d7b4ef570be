"""cache_write by `npu_scatter_pa_kv_cache`."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch

from opsocket.operators import Cache, CacheWritePlan, SlotBatch
from opsocket_ascend.device_array import DeviceArray
from opsocket_ascend.graph import Recordable
from opsocket_ascend.torch_npu_provider import strict


class NpuCacheWrite(Recordable, CacheWritePlan):
    """Two arrays in one call, as they are: keys and values, or the two parts of latent vectors. Rows whose slot is -1
    are left out on the host."""

    def _setup(self) -> None:
        room = self.request.bounds.max_tokens or 0
        self._kept, self._slots = DeviceArray(self.session, "i64", room), DeviceArray(self.session, "i64", room)

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots, np.int64)
        kept = np.flatnonzero(slots >= 0)
        self._to: torch.Tensor = self._slots.write(slots[kept])
        self._given = len(slots)
        self._taken: torch.Tensor | None = None if len(kept) == len(slots) else self._kept.write(kept)

    def graph_form(self) -> Hashable:
        return self._given, len(self._to), self._taken is None, self._kept.address, self._slots.address

    def _run(self, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> Cache:
        if len(self._to):
            second = "k_rope" if v is None else "v"
            if v is None:
                k, v = k.split([cache.spec.head_dim_v, k.shape[-1] - cache.spec.head_dim_v], -1)
            strict.scatter_cache(self._rows(k), self._rows(v), cache.planes["k"], cache.planes[second], self._to)
        return cache

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        return (values[: self._given] if self._taken is None else values.index_select(0, self._taken)).contiguous()
