"""From logits to token ids: what a request asks for, and the operators that carry it out for a whole step at once."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from opsocket.operators import Array, ContractError, Plan, SampleBatch, Session

if TYPE_CHECKING:
    from opsocket_engine.sequence import Sequence


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen, and when it ends. The order of the steps is `SampleSpec`'s.

    temperature: 0 takes the most probable token. top_k: 0 = all. top_p: 1 = all. min_p: 0 = all. repetition (1 = off),
    presence, frequency: penalties over all tokens so far, the prompt's included. seed: None takes one from the engine's
    seed and the request's number. n: samples of one prompt, whose cache they share. max_tokens: generated at most; None
    = up to the context's end. stop: strings that end the text, themselves left out. stop_token_ids: end like the
    model's own end tokens. ignore_eos: the model's own end tokens do not end the request.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _in_range("temperature", self.temperature, 0.0, 1e6)
        _in_range("top_p", self.top_p, 0.0, 1.0)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        _in_range("presence_penalty", self.presence_penalty, -1e3, 1e3)
        _in_range("frequency_penalty", self.frequency_penalty, -1e3, 1e3)
        _at_least("top_k", self.top_k, 0)
        _at_least("n", self.n, 1)
        if self.max_tokens is not None:
            _at_least("max_tokens", self.max_tokens, 1)
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise ContractError("seed", "an integer from 0 to 2^64 - 1, or None", self.seed)
        stop: object = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(s, str) and s for s in stop):
            raise ContractError("stop", "a tuple of strings that are not empty", repr(stop))

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is simply the one with the largest logit."""
        return self.temperature == 0 and not self.has_penalties


def uniform(seed: int, sample: int, position: int) -> float:
    """The number in [0, 1) that decides the token at `position` of sample number `sample` of a request.

    Philox (Salmon et al. 2011), a counter-based generator: the number depends on nothing else, so neither batching nor
    preemption changes a sampled text. A multiple of 2^-24, hence exact in f32.
    """
    generator = np.random.Philox(key=(sample << 64) | seed, counter=position)
    return float(int(generator.random_raw()) >> 40) * 2.0**-24


class Sampler:
    """Chooses one token for each row of logits, by the argmax operator where all are greedy, else by sample."""

    def __init__(self, session: Session, argmax: Plan, sample: Plan) -> None:
        self._session = session
        self._argmax = argmax
        self._sample = sample

    def __call__(self, logits: Array, sequences: Rows[Sequence]) -> np.ndarray:
        """Token ids i64[R] for logits f32[R, V]; row i belongs to sequence i."""
        if all(s.params.is_greedy for s in sequences):
            return self._session.download(self._argmax.run(logits))  # type: ignore[attr-defined]
        self._sample.update(sample_batch(sequences))
        return self._session.download(self._sample.run(logits))  # type: ignore[attr-defined]


def sample_batch(sequences: Rows[Sequence], ahead: int = 0) -> SampleBatch:
    """The sample operator's batch: every sequence's settings, history and number. ahead: of so many tokens later, which
    none of those that have penalties is."""
    histories = [s.history.of(s.tokens) if s.params.has_penalties else _EMPTY for s in sequences]
    ids, counts = zip(*histories, strict=True)

    def column(name: str) -> np.ndarray:
        return np.array([getattr(s.params, name) for s in sequences], np.float32)

    return SampleBatch(
        temperature=column("temperature"),
        top_k=np.array([s.params.top_k for s in sequences], np.int32),
        top_p=column("top_p"),
        min_p=column("min_p"),
        uniform=np.array([uniform(s.seed, s.sample, len(s.tokens) + ahead) for s in sequences], np.float32),
        repetition=column("repetition_penalty"),
        presence=column("presence_penalty"),
        frequency=column("frequency_penalty"),
        history_indptr=np.array([0, *accumulate(map(len, ids))], np.int64),
        history_ids=np.concatenate(ids, dtype=np.int64),
        history_counts=np.concatenate(counts, dtype=np.int32),
    )


_EMPTY = (np.empty(0, np.int64), np.empty(0, np.int32))


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ContractError(name, f"a number from {low:g} to {high:g}", value)


def _at_least(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ContractError(name, f"an integer of at least {low}", repr(value))
