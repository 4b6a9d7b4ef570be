"""cache_move: tokens from slot to slot, codes and scales as they are."""

from __future__ import annotations

import math

from opsocket.operators import Cache, CacheMovePlan, MoveBatch, dtype_info
from opsocket_triton import layouts
from opsocket_triton.cache.copying import Copies
from opsocket_triton.cache.static_scales import check_same_scales
from opsocket_triton.cache.tables import first_rows


class TritonCacheMove(CacheMovePlan):
    """Bytes per token: its rows in every plane, read once and written once, both twice for what overlaps.

    A graph serves later batches of any length. How many of their tokens may overlap is set by `bounds.max_tokens`, else
    by the batches before the capture; more are refused with `ResourceError`.
    """

    capture_level = "any"

    def _setup(self) -> None:
        spec, tokens = self.cache_spec, self.request.bounds.max_tokens
        sizes = {
            plane.name: math.prod(plane.shape[3:]) * dtype_info(plane.dtype).itemsize
            for plane in layouts.pages(spec).planes
        }
        capacity = spec.num_slots if tokens is None else min(tokens, spec.num_slots)  # no slot is written twice
        self._copies = Copies(self.session, capacity, spec.num_kv_heads, spec.block_size, sizes)
        if tokens is not None:
            self._copies.reserve(capacity)

    def _update(self, batch: MoveBatch) -> None:
        source, target = (first_rows(slots, self.cache_spec) for slots in (batch.src_slots, batch.dst_slots))
        self._copies.update(source, target, bool(self._graphs))

    def _run(self, src: Cache, dst: Cache) -> Cache:
        check_same_scales(src, dst)
        self._copies.run(src, dst)
        return dst
