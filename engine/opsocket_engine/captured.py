"""Decode steps recorded once and replayed: the host then neither builds nor checks a step's operators again.

A graph is kept for each number of sequences that has occurred, the ones least recently used are dropped. It has plans
of its own for what takes a step's batch, since a living graph refuses batches that its arrays have no room for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import numpy as np

from opsocket.operators import Array, Graph, Session
from opsocket_engine.batch import StepBatch
from opsocket_engine.model import CachePlans, Decoder, Inputs, Outputs
from opsocket_engine.requests import DecoderRequests

MAX_GRAPHS: Final = 32


def captures(session: Session, requests: DecoderRequests) -> bool:
    """Whether the session can capture a decode step. Not where contents are checked, which a replay leaves out."""
    return (
        session.in_place
        and session.options.checked != "deep"
        and all(session.supports(request).capture != "never" for request in requests.decode_step())
    )


class CapturedDecoder:
    """Runs decode steps of one decoder by graphs."""

    def __init__(self, session: Session, decoder: Decoder) -> None:
        self._session = session
        self._decoder = decoder
        self._steps: OrderedDict[int, _CapturedStep] = OrderedDict()

    def __call__(self, batch: StepBatch) -> tuple[Array, Array]:
        """Run a step whose `is_decode` holds: logits f32[T, V], and the index of the largest of each row, i64[T]. Both
        stay as they are until the next step."""
        size = len(batch.token_ids)
        if size not in self._steps:
            self._steps[size] = _CapturedStep(self._session, self._decoder, size)
            if len(self._steps) > MAX_GRAPHS:
                self._steps.popitem(last=False)
        self._steps.move_to_end(size)
        self._decoder.copy_blocks(batch)
        return self._steps[size](batch)


class _CapturedStep:
    """The graph of one number of sequences, and the arrays that it reads and writes. Its first run records it."""

    def __init__(self, session: Session, decoder: Decoder, size: int) -> None:
        requests = decoder.requests
        self._session = session
        self._decoder = decoder
        self._argmax: Any = decoder.plans[requests.argmax]
        plans = CachePlans(session.plan, [layer.decode for layer in requests.layers])
        token_ids, positions = (session.upload(np.zeros(size, np.int64)) for _ in range(2))
        self._inputs = Inputs(size, token_ids, positions, size, None, plans, Outputs(session, size))
        self._graph: Graph | None = None
        self._results: tuple[Array, Array]

    def __call__(self, batch: StepBatch) -> tuple[Array, Array]:
        inputs = self._inputs
        inputs.plans.update(batch)
        self._session.write(inputs.token_ids, batch.token_ids)
        self._session.write(inputs.positions, batch.positions)
        if self._graph is not None:
            self._graph.replay()
            return self._results
        with self._session.capture() as graph:
            logits = self._decoder.run(inputs)
            self._results = logits, self._argmax.run(logits, out=inputs.out("argmax", "i64"))
        self._graph = graph
        return self._results
