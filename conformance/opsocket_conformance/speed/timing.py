"""Seconds per call: the median over samples of at least a millisecond each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Final

SAMPLE_S: Final = 1e-3
_FEWEST: Final = 3

Call = Callable[[], object]


def seconds_per_call(*rounds: Sequence[Call], synchronize: Callable[[], None], budget_s: float) -> list[float]:
    """Of each round: calls made in turn, each sample going on where the last one stopped, its first call not counted.
    What was enqueued has finished when a sample ends. Rounds take turns, so that a machine that is busy for a while is
    busy for all; at least 3 samples of each, and more until the budget is spent."""
    turns: list[Iterator[Call]] = [cycle(calls) for calls in rounds]

    def sample(turn: Iterator[Call], count: int) -> float:
        next(turn)()
        synchronize()
        started = time.perf_counter()
        for call in islice(turn, count):
            call()
        synchronize()
        return time.perf_counter() - started

    counts = [_enough(partial(sample, turn)) for turn in turns]
    samples: list[list[float]] = [[] for _ in rounds]
    deadline = time.perf_counter() + budget_s
    while len(samples[0]) < _FEWEST or time.perf_counter() < deadline:
        for taken, turn, count in zip(samples, turns, counts, strict=True):
            taken.append(sample(turn, count) / count)
    return [median(taken) for taken in samples]


def _enough(sample: Callable[[int], float]) -> int:
    """How many calls take `SAMPLE_S`."""
    count, taken = 1, sample(1)
    while taken < SAMPLE_S:
        count = max(2 * count, math.ceil(count * SAMPLE_S / max(taken, 1e-9)))
        taken = sample(count)
    return count
