"""How long a product takes on a chip with a tile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from opsocket.operators import PackedWeight
from opsocket_triton.matmul.tiles import Tile

_CACHE: Final = 256 << 20
"""Bytes that no chip's last cache holds."""
_MOST_COPIES: Final = 16


class Timer:
    """Measures runs of a plan on a chip, each with another copy of its weight than the run before, so that none is read
    from a cache that a model's other weights would have filled."""

    def __init__(self, plan: Any, packed: PackedWeight, rows: int, size: tuple[str, int]) -> None:
        session, spec = plan.session, plan.spec
        self._plan, self._size = plan, size
        self._x = session.upload(np.random.default_rng(rows).standard_normal((rows, spec.k)), spec.x_dtype)
        self._bias = session.upload(np.zeros(spec.n, np.float32)) if spec.bias else None
        self._out = session.empty((rows, spec.n), spec.out_dtype)
        copies = max(1, min(_MOST_COPIES, _CACHE // packed.nbytes))
        self._packed = [packed, *(replace(packed, content=packed.content.copy()) for _ in range(copies - 1))]

    def seconds(self, tile: Tile) -> float:
        """Of one run with a tile, by the device's own clock, over as many as there are copies."""
        self._plan._tuned[self._size] = tile
        self._plan._run(self._x, self._packed[0], self._bias, self._out)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for packed in self._packed:
            self._plan._run(self._x, packed, self._bias, self._out)
        end.record()
        end.synchronize()
        elapsed: float = start.elapsed_time(end)
        return elapsed / 1000 / len(self._packed)
