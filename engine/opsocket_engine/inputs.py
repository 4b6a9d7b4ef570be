"""What a step of a decoder runs on: its arrays, the plans that have its batch, and where its results go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opsocket.operators import Array, Request, Session
from opsocket_engine.batch import StepBatch
from opsocket_engine.requests import CacheRequests


class CachePlans:
    """Every layer's plans of the operators that take a step's batch; equal requests share one."""

    def __init__(self, plan: Callable[[Request], Any], layers: Sequence[CacheRequests]) -> None:
        distinct = dict.fromkeys(request for layer in layers for request in (layer.cache_write, layer.attention))
        made = {request: plan(request) for request in distinct}
        self.cache_write = [made[layer.cache_write] for layer in layers]
        self.attention = [made[layer.attention] for layer in layers]
        self._writes, self._attentions = dict.fromkeys(self.cache_write), dict.fromkeys(self.attention)

    def exchanged(self, others: CachePlans) -> dict[Any, Any]:
        """Each plan to that of `others` which serves the same layers."""
        return dict(zip((*self._writes, *self._attentions), (*others._writes, *others._attentions), strict=True))

    def update(self, batch: StepBatch) -> None:
        for plan in self._attentions:
            plan.update(batch.attention)
        for plan in self._writes:
            plan.update(batch.cache_write)


class Outputs:
    """Arrays for what the operators of a step of `rows` tokens compute: one by each name, which all layers share. each:
    rows of the array for one token."""

    def __init__(self, session: Session, rows: int) -> None:
        self._session = session
        self.rows = rows
        self._arrays: dict[Any, Array] = {}

    def __call__(self, name: str, dtype: str, *shape: int, each: int = 1) -> Array:
        key = name, dtype, shape, each
        if key not in self._arrays:
            self._arrays[key] = self._session.empty((self.rows * each, *shape), dtype)
        return self._arrays[key]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a step is computed from, on the device: token_ids, positions i64[T], and the plans that have its batch.

    rows i64[num_rows]: the hidden states whose logits are wanted; None where those are all, in order. outputs,
    row_outputs: the arrays to compute into, for all tokens and for those of `rows` alone; None for new ones.
    """

    num_tokens: int
    token_ids: Array
    positions: Array
    num_rows: int
    rows: Array | None
    plans: CachePlans
    outputs: Outputs | None = None
    row_outputs: Outputs | None = None

    def of_rows(self) -> Inputs:
        """What goes on with the rows alone, once they are taken."""
        return replace(self, num_tokens=self.num_rows, rows=None, outputs=self.row_outputs)

    def out(self, name: str, dtype: str, *shape: int, each: int = 1) -> Array | None:
        """Where an operator puts its result: `each` rows of `shape` for each token."""
        return None if self.outputs is None else self.outputs(name, dtype, *shape, each=each)
