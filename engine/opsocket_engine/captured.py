"""Decode steps recorded once and replayed: the host then neither builds nor checks a step's operators again.

One graph may run several steps, each on the tokens that the one before chose: all else that a later step needs is
known before the first, and the host then works once for all of them. A graph is kept for each number of sequences and
of steps that has occurred, the ones least recently used are dropped. It has plans of its own for what takes a step's
batch, since a living graph refuses batches that its arrays have no room for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
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
        self._runs: OrderedDict[tuple[int, int], _CapturedRun] = OrderedDict()

    def __call__(self, batches: Items[StepBatch]) -> tuple[Array, Items[Array]]:
        """Run decode steps, as `assemble_decode` has them: the last one's logits f32[T, V], and for each step the index
        of the largest of each row, i64[T]. All stay as they are until the next call."""
        key = len(batches[0].token_ids), len(batches)
        if key not in self._runs:
            self._runs[key] = _CapturedRun(self._session, self._decoder, *key)
            if len(self._runs) > MAX_GRAPHS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        self._decoder.copy_blocks(batches[0])
        return self._runs[key](batches)


class _CapturedRun:
    """The graph of one number of sequences and steps, and the arrays that it reads and writes. Its first run records
    it."""

    def __init__(self, session: Session, decoder: Decoder, size: int, steps: int) -> None:
        requests = decoder.requests
        self._session = session
        self._decoder = decoder
        self._argmax: Any = decoder.plans[requests.argmax]
        layers, outputs = [layer.decode for layer in requests.layers], Outputs(session, size)
        self._token_ids = session.upload(np.zeros(size, np.int64))
        self._largest = [session.empty((size,), "i64") for _ in range(steps)]
        self._steps = [
            Inputs(
                size,
                token_ids,
                session.upload(np.zeros(size, np.int64)),
                size,
                None,
                CachePlans(session.plan, layers),
                outputs,
            )
            for token_ids in [self._token_ids, *self._largest[:-1]]
        ]
        self._graph: Graph | None = None
        self._logits: Array

    def __call__(self, batches: Items[StepBatch]) -> tuple[Array, Items[Array]]:
        self._session.write(self._token_ids, batches[0].token_ids)
        for inputs, batch in zip(self._steps, batches, strict=True):
            inputs.plans.update(batch)
            self._session.write(inputs.positions, batch.positions)
        if self._graph is None:
            with self._session.capture() as graph:
                for inputs, largest in zip(self._steps, self._largest, strict=True):
                    self._logits = self._decoder.run(inputs)
                    self._argmax.run(self._logits, out=largest)
            self._graph = graph
        else:
            self._graph.replay()
        return self._logits, self._largest
