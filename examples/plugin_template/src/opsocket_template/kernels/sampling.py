"""From logits to token ids. The randomness comes in with the batch, so that every backend picks the same token."""

from __future__ import annotations

import numpy as np

from opsocket.operators import ArgmaxPlan, SamplePlan
from opsocket_template.arrays import result


class Argmax(ArgmaxPlan):
    """NumPy takes the first of equals, as the operator wants it."""

    def _run(self, logits: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return result(logits.argmax(-1), "i64", out)


class Sample(SamplePlan):
    """Sorted by probability, all that top_k, top_p and min_p keep is a prefix: each only shortens it."""

    def _run(self, logits: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        tokens = [self._one(i, row.astype(np.float32)) for i, row in enumerate(logits)]
        return result(np.array(tokens, np.int64), "i64", out)

    def _one(self, i: int, logits: np.ndarray) -> int:
        batch = self.batch
        self._penalize(i, logits)
        if batch.temperature[i] == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: int(batch.top_k[i]) or None]
        # The largest is taken off before the division, so that no temperature overflows; sums in f64, as the last of
        # 10^5 f32 additions would decide.
        shares = np.exp((logits[order] - logits[order[0]]) / np.float32(batch.temperature[i])).astype(np.float64)
        mass = np.cumsum(shares)
        shares = shares[: int(np.searchsorted(mass / mass[-1], batch.top_p[i])) + 1]
        shares = shares[shares >= batch.min_p[i] * shares[0]]
        mass = np.cumsum(shares)
        return int(order[np.searchsorted(mass / mass[-1], batch.uniform[i], side="right")])

    def _penalize(self, i: int, logits: np.ndarray) -> None:
        batch = self.batch
        history = slice(int(batch.history_indptr[i]), int(batch.history_indptr[i + 1]))
        ids, counts = batch.history_ids[history], batch.history_counts[history]
        repetition = np.float32(batch.repetition[i])
        seen = np.where(logits[ids] > 0, logits[ids] / repetition, logits[ids] * repetition)
        logits[ids] = seen - batch.frequency[i] * counts - batch.presence[i]
