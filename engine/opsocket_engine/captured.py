"""Steps recorded once and replayed: the host then neither builds nor checks a step's operators again.

One graph may run several decode steps, each on the tokens that the one before chose: all else that a later step needs
is known before the first, and the host then works once for all of them. Such a graph is kept for each size that has
occurred, the ones least recently used are dropped.

Other steps vary in size with their prompts. Where graphs run on any number of rows, one serves them all, and one those
that choose no token. Elsewhere full steps alone are recorded, of which long prompts and busy engines are made.

A graph has plans of its own for what takes a step's batch, since a living graph refuses batches that its arrays have no
room for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any, Final

import numpy as np

from opsocket.operators import Array, Exchange, Graph, Request, SampleBatch, Session
from opsocket_engine.batch import StepBatch
from opsocket_engine.inputs import CachePlans, Inputs, Outputs
from opsocket_engine.model import Decoder
from opsocket_engine.requests import DecoderRequests

MAX_GRAPHS: Final = 32


def captures(session: Session, requests: DecoderRequests) -> bool:
    """Whether the session can capture a decode step. Not where contents are checked, which a replay leaves out."""
    return (
        session.in_place
        and session.options.checked != "deep"
        and "never" not in _levels(session, requests.decode_step())
    )


def captures_mixed(session: Session, requests: DecoderRequests) -> bool:
    """The same of other steps, whose chunks are of any length."""
    return captures(session, requests) and _levels(session, requests.mixed_step()) == {"any"}


def captures_sampled(session: Session, requests: DecoderRequests) -> bool:
    """The same of decode steps that end with the sample operator."""
    return captures(session, requests) and "never" not in _levels(session, [requests.sample])


def _levels(session: Session, requests: Items[Request]) -> set[str]:
    return {session.supports(request).capture for request in requests}


class CapturedDecoder:
    """Runs steps of one decoder by graphs. full: tokens of a step, at most; None where only decode steps are captured.
    max_batch: sequences of a step, and tokens that it chooses, at most."""

    def __init__(self, session: Session, decoder: Decoder, full: int | None, max_batch: int) -> None:
        self._session = session
        self._decoder = decoder
        self._full = full
        plans = [decoder.plans[request] for request in decoder.requests.mixed_step()]
        counts_rows = session.backend.graph_type is not None and session.backend.graph_type.any_rows
        # Arrays of tokens, of chosen ones and of their experts' choices are told apart by how many rows they have.
        sizes = {rows * each for rows in (full or 0, max_batch) for each in decoder.rows_each}
        are_distinct = len(sizes) == 2 * len(decoder.rows_each)
        self._any_rows = counts_rows and are_distinct and all(plan.any_rows for plan in plans)
        self._max_batch = max_batch
        self._runs: OrderedDict[tuple[str, *tuple[int, ...]], _Decode | _Mixed] = OrderedDict()
        self._met: set[tuple[int, ...]] = set()
        self._outputs: dict[int, Outputs] = {}

    def decode(
        self, batches: Items[StepBatch], samples: Items[SampleBatch] | None = None
    ) -> tuple[Array, Items[Array]]:
        """Run decode steps, as `assemble_decode` has them: the last one's logits f32[T, V], and for each step the token
        that it chooses for each row, i64[T]: by a batch of the sample operator, or the largest. All stay as they are
        until the next call."""
        size, steps, kind = len(batches[0].token_ids), len(batches), "largest" if samples is None else "sampled"
        first: Any = self._runs.get((kind, size, 1)) if steps > 1 else None
        run = self._run(
            (kind, size, steps),
            lambda: _Decode(self._session, self._decoder, steps, self._arrays(size), first, sampled=kind == "sampled"),
        )
        self._decoder.copy_blocks(batches[0])
        found: tuple[Array, Items[Array]] = run(batches, samples or [])
        return found

    def takes(self, batch: StepBatch) -> bool:
        """Whether `forward` is to run a step that is not all decoding. Where graphs are of one number of rows, only a
        full one, from the second of its size on."""
        if self._full is None:
            return False
        if self._any_rows:
            return True
        if len(batch.token_ids) != self._full:
            return False
        key = _size(batch)
        is_known = key in self._met
        self._met.add(key)
        return is_known

    def forward(self, batch: StepBatch) -> Array | None:
        """As `Decoder.forward`; the logits stay as they are until the next call."""
        tokens, sequences, rows = _size(batch)
        if self._any_rows:
            assert self._full is not None
            tokens, sequences, rows = self._full, self._max_batch, min(rows, 1) * self._max_batch
        outputs = self._arrays(tokens), self._arrays(rows) if rows else None
        run = self._run(
            ("mixed", tokens, sequences, rows),
            lambda: _Mixed(self._session, self._decoder, sequences, *outputs, any_rows=self._any_rows),
        )
        self._decoder.copy_blocks(batch)
        logits: Array | None = run(batch)
        return logits

    def _run(self, key: tuple[str, *tuple[int, ...]], make: Callable[[], _Decode | _Mixed]) -> Any:
        if key not in self._runs:
            self._runs[key] = make()
            if len(self._runs) > MAX_GRAPHS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        return self._runs[key]

    def _arrays(self, rows: int) -> Outputs:
        """For steps of so many rows, whose graphs share them: one runs after the other."""
        return self._outputs.setdefault(rows, Outputs(self._session, rows))


def _size(batch: StepBatch) -> tuple[int, int, int]:
    """Of a step that is not all decoding: tokens, sequences, rows whose logits are wanted."""
    return len(batch.token_ids), len(batch.attention.kv_lens), len(batch.rows)


class _Recording:
    """A graph whose first run records it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.graph: Graph | None = None

    def _run(self, runs: Callable[[], None], rows: dict[int, int] | None = None) -> None:
        if self.graph is None:
            with self._session.capture(rows) as graph:
                runs()
            self.graph = graph
        else:
            self.graph.replay(rows)


class _Decode(_Recording):
    """The graph of one number of sequences and steps, and the arrays that it reads and writes. sampled: each step ends
    with the sample operator, not with the argmax.

    first: that of one step, whose runs are repeated where its graph can be: they need not be made to be recorded.
    """

    def __init__(
        self,
        session: Session,
        decoder: Decoder,
        steps: int,
        outputs: Outputs,
        first: _Decode | None = None,
        *,
        sampled: bool = False,
    ) -> None:
        super().__init__(session)
        requests, size = decoder.requests, outputs.rows
        self._decoder = decoder
        self._samples: list[Any] = [session.plan(requests.sample) for _ in range(steps * sampled)]
        self._choose: list[Any] = self._samples or [decoder.plans[requests.argmax]] * steps
        self._chosen = [session.empty((size,), "i64") for _ in range(steps)]
        self._token_ids = session.upload(np.zeros(size, np.int64))
        self._steps = [
            Inputs(
                size,
                token_ids,
                session.upload(np.zeros(size, np.int64)),
                size,
                None,
                CachePlans(session.plan, [layer.decode for layer in requests.layers]),
                outputs,
            )
            for token_ids in [self._token_ids, *self._chosen[:-1]]
        ]
        self._logits: Array
        self._first = first if first is not None and first.graph is not None and first.graph.repeats else None

    def __call__(self, batches: Items[StepBatch], samples: Items[SampleBatch]) -> tuple[Array, Items[Array]]:
        for plan, sample in zip(self._samples, samples, strict=True):
            plan.update(sample)
        self._session.write(self._token_ids, batches[0].token_ids)
        for inputs, batch in zip(self._steps, batches, strict=True):
            inputs.plans.update(batch)
            self._session.write(inputs.positions, batch.positions)
        if self._first is not None:
            self._repeat(self._first)
        self._run(self._all)
        return self._logits, self._chosen

    def _all(self) -> None:
        for inputs, choose, chosen in zip(self._steps, self._choose, self._chosen, strict=True):
            self._logits = self._decoder.run(inputs)
            choose.run(self._logits, out=chosen)

    def _repeat(self, first: _Decode) -> None:
        """The graph of all steps, from that of `first`, whose arrays and plans are exchanged for each."""
        assert first.graph is not None
        old, old_choose, old_chosen = first._steps[0], first._choose[0], first._chosen[0]
        exchanges = [
            Exchange(
                [(old.token_ids, new.token_ids), (old.positions, new.positions), (old_chosen, chosen)],
                {**old.plans.exchanged(new.plans), old_choose: choose},
            )
            for new, choose, chosen in zip(self._steps, self._choose, self._chosen, strict=True)
        ]
        self.graph, self._logits, self._first = first.graph.repeated(exchanges), first._logits, None


class _Mixed(_Recording):
    """The graph of steps of one number of tokens, sequences and rows; with any_rows, of so many at most."""

    def __init__(
        self,
        session: Session,
        decoder: Decoder,
        sequences: int,
        outputs: Outputs,
        row_outputs: Outputs | None,
        *,
        any_rows: bool,
    ) -> None:
        super().__init__(session)
        size, rows = outputs.rows, 0 if row_outputs is None else row_outputs.rows
        self._decoder = decoder
        self._any_rows, self._sequences = any_rows, sequences
        self._inputs = Inputs(
            size,
            session.upload(np.zeros(size, np.int64)),
            session.upload(np.zeros(size, np.int64)),
            rows,
            session.upload(np.zeros(rows, np.int64)) if rows else None,
            CachePlans(session.plan, [layer.mixed for layer in decoder.requests.layers]),
            outputs,
            row_outputs,
        )
        self._logits: Array | None = None

    def __call__(self, batch: StepBatch) -> Array | None:
        inputs, write, counts = self._inputs, self._session.write, None
        # A graph takes no more sequences than it was recorded with.
        inputs.plans.update(batch if self.graph is not None else batch.padded(self._sequences))
        write(inputs.token_ids, batch.token_ids)
        write(inputs.positions, batch.positions)
        if self._any_rows:
            counts = self._counts(inputs.num_tokens, len(batch.token_ids))
        if inputs.rows is not None:
            write(inputs.rows, batch.rows)
            if counts is not None:
                counts |= self._counts(inputs.num_rows, len(batch.rows))
        self._run(self._all, counts)
        if self._logits is None or counts is None:
            return self._logits
        return self._session.leading(self._logits, len(batch.rows))

    def _all(self) -> None:
        self._logits = self._decoder.run(self._inputs)

    def _counts(self, recorded: int, count: int) -> dict[int, int]:
        return {recorded * each: count * each for each in self._decoder.rows_each}
