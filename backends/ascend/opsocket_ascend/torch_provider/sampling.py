"""Sampling with cumulative sums in whole numbers, since an NPU has no f64 and torch_npu makes f32 of it without a word.

A share of the probability is a whole number of 2^-38, which is less than the f32 softmax knows of any share that could
be drawn; sums of shares are then exact, in any number. What they are compared with (top_p, min_p, the uniform number)
is rounded to 2^-24: products of the two fit an i64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from opsocket.operators import SampleBatch
from opsocket.operators.composed_sampling import ComposedSample

_SHARE_BITS: Final = 38
_LIMIT: Final = 1 << 24


class TorchSample(ComposedSample):
    """core's composition, but for the draw."""

    def _update(self, batch: SampleBatch) -> None:
        super()._update(batch)
        self._most, self._least, self._drawn = (
            self.session.upload(np.floor(np.asarray(values, np.float64)[:, None] * _LIMIT).astype(np.int64))
            for values in (batch.top_p, batch.min_p, batch.uniform)
        )

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        logits, order = logits.sort(dim=-1, descending=True, stable=True)
        temperature = torch.where(self._temperature == 0, 1.0, self._temperature)
        shares = (torch.softmax((logits - logits[:, :1]) / temperature, -1) * 2.0**_SHARE_BITS).to(torch.int64)
        rank = torch.arange(logits.shape[1], device=logits.device)
        shares = shares.where((self._top_k == 0) | (rank < self._top_k), 0)
        mass = shares.cumsum(-1)
        shares = shares.where(((mass - shares) * _LIMIT < self._most * mass[:, -1:]) | (rank == 0), 0)
        shares = shares.where(shares * _LIMIT >= self._least * shares[:, :1], 0)
        mass = shares.cumsum(-1)
        passed = (mass * _LIMIT <= self._drawn * mass[:, -1:]).sum(-1, keepdim=True)
        last = torch.where(shares > 0, rank, 0).amax(-1, keepdim=True)
        return order.gather(1, torch.minimum(passed, last)).squeeze(1)
