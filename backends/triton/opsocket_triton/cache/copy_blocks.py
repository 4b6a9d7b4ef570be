"""cache_copy_blocks: whole blocks of every plane, as they are."""

from __future__ import annotations

import math

import numpy as np

from opsocket.operators import BlockPairs, Cache, CacheCopyBlocksPlan, dtype_info
from opsocket_triton import layouts
from opsocket_triton.cache.copying import Copies
from opsocket_triton.cache.static_scales import check_same_scales


class TritonCacheCopyBlocks(CacheCopyBlocksPlan):
    """A block is one run of bytes in each plane, read once and written once, both twice for what overlaps.

    A graph serves later batches of any length. No more of their pairs may overlap than did before the capture; more are
    refused with `ResourceError`.
    """

    capture_level = "any"

    def _setup(self) -> None:
        spec = self.cache_spec
        sizes = {
            plane.name: math.prod(plane.shape[1:]) * dtype_info(plane.dtype).itemsize
            for plane in layouts.pages(spec).planes
        }
        self._copies = Copies(self.session, spec.num_blocks, 1, 0, sizes)

    def _update(self, batch: BlockPairs) -> None:
        pairs = np.asarray(batch.pairs, np.int64)
        self._copies.update(pairs[:, 0], pairs[:, 1], bool(self._graphs))

    def _run(self, src: Cache, dst: Cache) -> Cache:
        check_same_scales(src, dst)
        self._copies.run(src, dst)
        return dst
