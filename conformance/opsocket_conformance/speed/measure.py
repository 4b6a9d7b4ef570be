"""One case, timed: warm, the same arrays again; and cold, copies in turn that the last-level cache does not hold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from opsocket.operators import Session
from opsocket_conformance.case import Case
from opsocket_conformance.runner import time_limit
from opsocket_conformance.speed.limit import measure_limit
from opsocket_conformance.speed.recorder import Recorded, Recorder
from opsocket_conformance.speed.timing import seconds_per_call

BUDGET_S: Final = 0.3
"""Seconds that a case is timed for, warm and cold together."""
_MOST_BYTES: Final = 512 << 20
_MOST_COPIES: Final = 4096
_COPYING_S: Final = 2.0
_FEWEST_COPIES: Final = 2


@dataclass(frozen=True)
class Timed:
    """seconds: of one call over inputs that were not used since `rotated_bytes` others were. warm_seconds: over the
    same inputs again. moved: bytes that a call has to move at the least."""

    case: str
    operator: str
    seconds: float
    warm_seconds: float
    moved: int
    rotated_bytes: int


@dataclass(frozen=True)
class Untimed:
    """A case that was chosen, and why there is no time."""

    case: str
    why: str


def time_case(
    case: Case, session: Session, seed: int, limit_s: float, cache_bytes: int, budget_s: float = BUDGET_S
) -> Timed | Untimed:
    """Run a case once more to get at its arrays, then time the call of its operator that moves the most bytes."""
    bench = Recorder(session=session, operator=case.check.operator)
    try:
        with time_limit(limit_s), np.errstate(all="ignore"):
            case.check.run(bench, case.rng(seed))
            recorded = bench.recorded
            if bench.failures:
                return Untimed(case.id, f"it fails when it is run again: {bench.failures[0]}")
            if recorded is None or not recorded.moved:
                return Untimed(case.id, "it moves no bytes")
            copies = rotation(bench, recorded, cache_bytes)
            again, others = [recorded.call()], [copy.call() for copy in copies]
            warm, cold = seconds_per_call(again, others, synchronize=session.synchronize, budget_s=budget_s)
    except Exception as error:  # speed is no verdict: what can't be timed is told, and the run goes on
        return Untimed(case.id, f"{type(error).__name__}: {error}")
    return Timed(case.id, case.check.operator, cold, warm, recorded.moved, len(copies) * recorded.moved)


def rotation(bench: Recorder, recorded: Recorded, cache_bytes: int) -> list[Recorded]:
    """Copies of a call's arrays that together move twice what the cache holds, where memory, count and time allow."""
    wanted = -(-2 * cache_bytes // recorded.moved)
    most = min(_MOST_COPIES, _MOST_BYTES // max(1, bench.footprint(recorded)))
    deadline = time.perf_counter() + _COPYING_S
    copies: list[Recorded] = []
    while len(copies) < _FEWEST_COPIES or (len(copies) < min(wanted, most) and time.perf_counter() < deadline):
        copies.append(bench.copy(recorded))
    return copies


def answer(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker says: the limit where no case is named, else a `Timed` or an `Untimed`."""
    if "case" not in asked:
        return asdict(measure_limit(session))
    from opsocket_conformance.case import parse_case
    from opsocket_conformance.checks import CHECKS

    case = parse_case(asked["case"], CHECKS)
    return asdict(time_case(case, session, asked["seed"], asked["limit_s"], asked["cache_bytes"]))
