"""From logits to token ids, in float64, with the margin by which each token was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsocket.operators import SampleBatch
from opsocket_conformance.guard import judge_only

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@judge_only
def argmax(logits: Float64) -> Int64:
    """Index of the largest of each row, ties to the lowest."""
    ids: Int64 = np.argmax(logits, axis=-1).astype(np.int64)
    return ids


@dataclass(frozen=True)
class Choice:
    """margin: how far, in probability, the nearest other decision was; 0 means that rounding could decide."""

    token: int
    margin: float


@judge_only
def sample(logits: Float64, batch: SampleBatch, row: int) -> Choice:
    """The token of one request; logits f64[V]."""
    logits = _penalized(logits, batch, row)
    temperature = float(batch.temperature[row])
    if temperature == 0:
        order = np.argsort(-logits, kind="stable")
        gap = logits[order[0]] - logits[order[1]] if len(order) > 1 else 1.0
        return Choice(int(order[0]), float(gap) if gap else 1.0)
    scaled = logits / temperature
    weights = np.exp(scaled - scaled.max())
    probability = weights / weights.sum()
    order = np.argsort(-probability, kind="stable")
    kept = probability[order]
    margins = [1.0]

    top_k = int(batch.top_k[row])
    if 0 < top_k < len(kept):
        kept = kept[:top_k]
    top_p = float(batch.top_p[row])
    if top_p < 1:
        mass = np.cumsum(kept) / kept.sum()
        margins.append(float(np.abs(mass - top_p).min()))
        kept = kept[: int(np.searchsorted(mass, top_p, side="left")) + 1]
    min_p = float(batch.min_p[row])
    if min_p > 0:
        share = kept / kept[0]
        margins.append(float(np.abs(share - min_p).min()))
        kept = kept[share >= min_p]
    mass = np.cumsum(kept) / kept.sum()
    uniform = float(batch.uniform[row])
    margins.append(float(np.abs(mass - uniform)[:-1].min(initial=1.0)))
    place = min(int(np.searchsorted(mass, uniform, side="right")), len(kept) - 1)
    return Choice(int(order[place]), min(margins))


def _penalized(logits: Float64, batch: SampleBatch, row: int) -> Float64:
    logits = logits.copy()
    first, last = (int(i) for i in batch.history_indptr[row : row + 2])
    ids, counts = batch.history_ids[first:last], batch.history_counts[first:last]
    repetition = float(batch.repetition[row])
    seen = logits[ids]
    seen = np.where(seen > 0, seen / repetition, seen * repetition)
    logits[ids] = seen - float(batch.frequency[row]) * counts - float(batch.presence[row])
    return logits
