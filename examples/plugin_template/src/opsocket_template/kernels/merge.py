"""The union of attention over disjoint key sets."""

from __future__ import annotations

import numpy as np

from opsocket.operators import MergeStatesPlan
from opsocket_template.arrays import result


class MergeStates(MergeStatesPlan):
    """A part of LSE -inf is left out, whatever its output holds."""

    def _run(self, outs: np.ndarray, lses: np.ndarray, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        top = lses.max(0)
        base = np.where(top == -np.inf, np.float32(0), top)
        shares = np.exp(lses - base)
        total = shares.sum(0)
        parts = np.where(lses[..., None] == -np.inf, np.float32(0), shares[..., None] * outs.astype(np.float32))
        merged = parts.sum(0) / np.where(total == 0, np.float32(1), total)[..., None]
        with np.errstate(divide="ignore"):
            return result(merged, self.request.spec.out_dtype, out), base + np.log(total)
