"""Every chosen case, one at a time in one process, so that no two disturb each other; and their part of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from opsocket.operators import Session
from opsocket.runtime import RuntimeConfig
from opsocket_conformance.case import Case
from opsocket_conformance.isolation import Died, NotOpened, Worker
from opsocket_conformance.report.data import seal
from opsocket_conformance.report.text import clipped
from opsocket_conformance.speed.limit import ASSUMED_CACHE, Limit
from opsocket_conformance.speed.measure import Timed, Untimed, answer

Ask = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Has one question answered; raises `Died` or `NotOpened`."""
_LIMIT_S: Final = 120.0
_LONGEST: Final = 8000
_UNKNOWN: Final = Limit(None, "it could not be measured", ASSUMED_CACHE, "assumed")


def with_speed(report: Mapping[str, Any], cases: Sequence[Case], ask: Ask, seed: int, limit_s: float) -> dict[str, Any]:
    """The report with what the cases take. A case that takes its process with it is untimed, and the others go on."""
    try:
        limit = Limit(**ask({"limit_s": _LIMIT_S}))
    except (Died, NotOpened) as death:
        limit = Limit(None, f"{_UNKNOWN.by}: {death}", _UNKNOWN.cache_bytes, _UNKNOWN.cache_by)
    asked = {"seed": seed, "limit_s": limit_s, "cache_bytes": limit.cache_bytes}
    timed: list[Timed] = []
    untimed: list[Untimed] = []
    for case in cases:
        try:
            told = ask({**asked, "case": case.id})
        except (Died, NotOpened) as death:
            told = {"case": case.id, "why": str(death)}
        if "why" in told:
            untimed.append(Untimed(**told))
        else:
            timed.append(Timed(**told))
    return seal(
        {
            **report,
            "speed": [entry(one, limit) for one in timed],
            "speed_limit": {
                "gb_s": None if limit.gb_s is None else _digits(limit.gb_s),
                "by": clipped(limit.by, _LONGEST),
                "cache_bytes": limit.cache_bytes,
                "cache_by": limit.cache_by,
            },
            "speed_untimed": [{"case": one.case, "why": clipped(one.why, _LONGEST)} for one in untimed],
        }
    )


def entry(timed: Timed, limit: Limit) -> dict[str, Any]:
    """One row of the report. There is a fraction of the limit only where the data can't have been in a cache."""
    rate = timed.moved / timed.seconds / 1e9
    held = timed.rotated_bytes <= limit.cache_bytes
    return {
        "case": timed.case,
        "operator": timed.operator,
        "seconds": _digits(timed.seconds),
        "warm_seconds": _digits(timed.warm_seconds),
        "bytes": timed.moved,
        "rotated_bytes": timed.rotated_bytes,
        "gb_s": _digits(rate),
        "fraction_of_limit": None if limit.gb_s is None or held else _digits(rate / limit.gb_s),
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def in_process(session: Session) -> Ask:
    """Questions to a session of this process."""
    return lambda asked: answer(session, asked)


@contextmanager
def isolated(config: RuntimeConfig) -> Iterator[Ask]:
    """Questions to a worker, which is replaced when it dies."""
    workers: list[Worker] = []

    def ask(asked: Mapping[str, Any]) -> dict[str, Any]:
        if not workers:
            workers.append(Worker(config))
        try:
            return workers[0].ask_speed(asked)
        except Died:
            workers.pop().close()
            raise

    try:
        yield ask
    finally:
        for worker in workers:
            worker.close()
