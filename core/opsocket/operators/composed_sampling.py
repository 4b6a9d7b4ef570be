"""From logits to token ids out of torch operations."""

from __future__ import annotations

import numpy as np
import torch

from opsocket.operators.sampling import ArgmaxPlan, SampleBatch, SamplePlan


class ComposedArgmax(ArgmaxPlan):
    """torch's own, which takes the first of equals."""

    def _run(self, logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        best = logits.argmax(-1)
        return best if out is None else out.copy_(best)


class ComposedSample(SamplePlan):
    """All requests at once: one stable sort of the penalized logits, then prefixes of it.

    Logits are shifted by their largest before they are divided by the temperature, so that no temperature overflows.
    Cumulative sums are taken in f64: the last of 10^5 f32 additions would decide.
    """

    def _update(self, batch: SampleBatch) -> None:
        self._temperature, self._top_p, self._min_p, self._uniform = (
            self._column(values) for values in (batch.temperature, batch.top_p, batch.min_p, batch.uniform)
        )
        self._repetition, self._presence, self._frequency = (
            self._column(values) for values in (batch.repetition, batch.presence, batch.frequency)
        )
        self._top_k = self.session.upload(np.asarray(batch.top_k, np.int64)[:, None])
        self._all_greedy = not np.any(batch.temperature)
        starts = np.asarray(batch.history_indptr, np.int64)
        rows = np.searchsorted(starts, np.arange(starts[-1]), side="right") - 1
        self._history_rows = self.session.upload(rows.astype(np.int64))
        self._history_ids = self.session.upload(np.asarray(batch.history_ids, np.int64))
        self._history_counts = self.session.upload(np.asarray(batch.history_counts, np.float32))

    def _run(self, logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        logits = self._penalized(logits.float())
        tokens = logits.argmax(-1)
        if not self._all_greedy:
            tokens = torch.where(self._temperature[:, 0] == 0, tokens, self._draw(logits))
        return tokens if out is None else out.copy_(tokens)

    def _column(self, values: np.ndarray) -> torch.Tensor:
        column: torch.Tensor = self.session.upload(np.asarray(values, np.float32)[:, None])
        return column

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        rows, ids = self._history_rows, self._history_ids
        if not len(ids):
            return logits
        seen, repetition = logits[rows, ids], self._repetition[rows, 0]
        seen = torch.where(seen > 0, seen / repetition, seen * repetition)
        seen = seen - self._frequency[rows, 0] * self._history_counts - self._presence[rows, 0]
        return logits.index_put((rows, ids), seen)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        logits, order = logits.sort(dim=-1, descending=True, stable=True)
        temperature = torch.where(self._temperature == 0, 1.0, self._temperature)
        shares = torch.softmax((logits - logits[:, :1]) / temperature, -1).double()
        rank = torch.arange(logits.shape[1], device=logits.device)
        shares = shares.where((self._top_k == 0) | (rank < self._top_k), 0.0)
        mass = shares.cumsum(-1)
        before = (mass - shares) / mass[:, -1:]
        shares = shares.where((before < self._top_p) | (rank == 0), 0.0)
        shares = shares.where(shares >= self._min_p * shares[:, :1], 0.0)
        mass = shares.cumsum(-1)
        passed = (mass <= self._uniform * mass[:, -1:]).sum(-1, keepdim=True)
        last = torch.where(shares > 0, rank, 0).amax(-1, keepdim=True)
        return order.gather(1, torch.minimum(passed, last)).squeeze(1)
