"""Runs cases, one after the other, each reported exactly once whatever becomes of it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType

import numpy as np

from opsocket.operators import Ladder, Reason, Session
from opsocket_conformance.bench import Bench, Denied
from opsocket_conformance.case import Case
from opsocket_conformance.exclusions import Exclusion, excluded
from opsocket_conformance.verdicts import Result, Verdict


class TimeLimit(Exception):
    """A case took longer than it may."""


def run_case(case: Case, session: Session, seed: int, limit_s: float, ladder: Ladder | None = None) -> Result:
    """Put one case to a session and judge the answer; never raises but for KeyboardInterrupt. ladder: takes down
    what is launched."""
    bench, started = Bench(session=session, ladder=ladder), time.perf_counter()
    verdict, messages = Verdict.PASS, list[str]()
    reasons: tuple[Reason, ...] = ()
    try:
        with time_limit(limit_s), np.errstate(all="ignore"):
            case.check.run(bench, case.rng(seed))
            bench.finish()
    except Denied as denial:
        verdict, reasons = Verdict.UNSUPPORTED, denial.reasons
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a kernel that wants to leave does not take the run with it
        verdict = Verdict.CRASH
        messages = ["".join(traceback.format_exception(error)).rstrip()]
    if bench.failures and verdict is not Verdict.CRASH:
        verdict = Verdict.FAIL
    operator = case.check.operator
    return Result(
        case=case.id,
        operator=operator,
        verdict=verdict,
        provider=bench.providers.get(operator, ""),
        tier=bench.tiers.get(operator, ""),
        ratio=bench.ratio,
        elements=bench.elements,
        filters=bench.filters,
        messages=(*bench.failures, *messages),
        notes=tuple(bench.notes),
        reasons=reasons,
        seconds=time.perf_counter() - started,
        trace="" if ladder is None else ladder.trace(),
        launched={owner: tuple(records) for owner, records in bench.launched.items() if records},
    )


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` in the main thread after so many seconds; a kernel that never returns is beyond it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"longer than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)  # perhaps someone else's, such as a test runner's
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def run(
    cases: Sequence[Case],
    session: Session,
    *,
    seed: int = 0,
    limit_s: float = 60.0,
    exclusions: Sequence[Exclusion] = (),
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """One result per case, in their order. An interrupt leaves the rest NOT_RUN; an exclusion that holds, EXCLUDED."""
    results: list[Result] = []
    interrupted = ""
    for case in cases:
        result = Result(case.id, case.check.operator, Verdict.NOT_RUN, messages=(interrupted,))
        if not interrupted:
            exclusion = excluded(case.id, exclusions)
            if exclusion is not None:
                result = replace(result, verdict=Verdict.EXCLUDED, messages=(str(exclusion),))
            else:
                try:
                    result = run_case(case, session, seed, limit_s)
                except KeyboardInterrupt:
                    interrupted = "the run was interrupted"
                    result = replace(result, messages=(interrupted,))
        results.append(result)
        on_result(result)
    return results
