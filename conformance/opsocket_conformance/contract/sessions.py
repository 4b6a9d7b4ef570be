"""Sessions beside each other, and threads. A session is not shared between threads; two of them owe each other nothing.

A second session is opened as the first was: by its backend, on its device, with its options.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from opsocket.operators import Reason, ResourceError
from opsocket_conformance.bench import Bench, Denied
from opsocket_conformance.contract import work
from opsocket_conformance.contract.work import Work
from opsocket_conformance.findings import Float64

_ROUNDS: Final = 20
_PATIENCE_S: Final = 60.0


@contextmanager
def _another(bench: Bench) -> Iterator[Bench]:
    """A bench of a second session on the same device; `Denied` where its resources do not suffice for two."""
    session = bench.session
    try:
        second = session.backend.open(session.device, session.options)
    except ResourceError as error:
        raise Denied((Reason("sessions", "sessions on one device", 1, str(error)),)) from None
    with second:
        other = Bench(session=second)
        yield other
        other.finish()
        _hand_over(other, bench)


def _hand_over(source: Bench, bench: Bench) -> None:
    for finding in source.failures:
        bench.fail(finding)
    for reading in source.notes:
        bench.note(reading)
    bench.providers.update(source.providers)
    bench.tiers.update(source.tiers)


def two_sessions(bench: Bench, rng: np.random.Generator, dtype: str) -> None:
    """What one session does changes nothing in another, and neither does closing it."""
    mine = list(work.assorted(bench, rng, dtype))
    alone = [each.alone(bench) for each in mine]
    plans = [each.plan(bench) for each in mine]
    with _another(bench) as other:
        theirs = list(work.assorted(other, rng, dtype))
        theirs_alone = [each.alone(other) for each in theirs]
        _check_all(bench, "beside another session", mine, plans, alone)
        for each, got in zip(theirs, theirs_alone, strict=True):
            each.check(other, "beside another session", each.run(other, each.plan(other)), got)
    _check_all(bench, "after another session was closed", mine, plans, alone)
    _check_all(bench, "by new plans, after another session was closed", mine, [w.plan(bench) for w in mine], alone)


def _check_all(
    bench: Bench, when: str, works: Sequence[Work], plans: Sequence[object], alone: Sequence[Float64]
) -> None:
    for each, plan, got in zip(works, plans, alone, strict=True):
        each.check(bench, when, each.run(bench, plan), got)


def other_thread(bench: Bench, rng: np.random.Generator, dtype: str) -> None:
    """A session and its plans go on in another thread, one thread at a time."""
    works = list(work.assorted(bench, rng, dtype))
    alone = [each.alone(bench) for each in works]
    plans = [each.plan(bench) for each in works]
    _in_threads([lambda: _check_all(bench, "in another thread", works, plans, alone)])
    _in_threads([lambda: _check_all(bench, "by plans of another thread", works, [w.plan(bench) for w in works], alone)])
    _check_all(bench, "back in the first thread", works, plans, alone)


def threads(bench: Bench, rng: np.random.Generator, dtype: str) -> None:
    """Two threads, each with a session of its own, at the same time: each gets what it gets alone."""
    alone_in_turn, together = threading.Lock(), threading.Barrier(2, timeout=_PATIENCE_S)
    seeds = rng.integers(1 << 62, size=2)

    def body(number: int) -> None:
        try:
            with _another(bench) as mine:
                with alone_in_turn:
                    works = list(work.assorted(mine, np.random.default_rng(seeds[number]), dtype))
                    alone = [each.alone(mine) for each in works]
                    plans = [each.plan(mine) for each in works]
                together.wait()
                for turn in range(_ROUNDS):
                    for each, plan in zip(works, plans, strict=True):
                        if each.batch is not None:
                            plan.update(each.batch)
                    _check_all(mine, f"beside another thread, turn {turn}", works, plans, alone)
        except threading.BrokenBarrierError:
            return  # the other thread has a better reason
        except BaseException:
            together.abort()
            raise

    _in_threads([lambda: body(0), lambda: body(1)])


def _in_threads(bodies: Sequence[Callable[[], None]]) -> None:
    """Run each in a thread of its own, all at once; the first exception comes back to the caller."""
    raised: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            with np.errstate(all="ignore"):
                body()
        except BaseException as error:
            raised.append(error)

    running = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if raised:
        raise raised[0]
