"""What runs where: planned, from `supports`; and what did run, from the session's observer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from opsocket.operators import Backend, DeviceInfo, Plan, Request, Session, Support


@dataclass(frozen=True)
class Placed:
    """One request and the answer to it. kernel: the plan class that serves it, "" where none does."""

    request: Request
    support: Support
    kernel: str

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.request.op,
            "tier": self.support.tier,
            "provider": self.support.provider,
            "kernel": self.kernel,
            "capture": self.support.capture,
            "reasons": [reason.to_json() for reason in self.support.reasons],
            "passed_over": [
                {"provider": provider, "reasons": [reason.to_json() for reason in reasons]}
                for provider, reasons in self.support.passed_over
            ],
            "request": self.request.to_json(),
        }


def place(
    backend: Backend,
    device: DeviceInfo,
    requests: Iterable[Request],
    pins: Mapping[str, str] | None = None,
    tuned: Mapping[str, str] | None = None,
) -> tuple[Placed, ...]:
    """Who serves each request on a device, present or not; equal requests once, in the order of their first."""
    placed = []
    for request in dict.fromkeys(requests):
        support, kernel = backend.pick(device, request, pins, tuned)
        placed.append(Placed(request, support, "" if kernel is None else kernel_name(kernel)))
    return tuple(placed)


def kernel_name(kernel: type[Plan]) -> str:
    """Module and class."""
    return f"{kernel.__module__}.{kernel.__qualname__}"


@dataclass(frozen=True)
class Ran:
    """What served one request. calls: kernel starts. seconds: host time from start to enqueued, all calls together."""

    request: Request
    provider: str
    kernel: str
    calls: int
    seconds: float

    @property
    def op(self) -> str:
        return self.request.op

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "provider": self.provider,
            "kernel": self.kernel,
            "calls": self.calls,
            "seconds": self.seconds,
            "request": self.request.to_json(),
        }


class Recorder:
    """Counts and times the kernels of a session:

        with Recorder(session) as recorder:
            ...
        recorder.ran()

    On a device that works behind the host's back, the time is that of enqueueing. An observer that is already set goes
    on being called, inside.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before: Callable[[Plan], Any] | None = None
        self._ran: dict[Plan, tuple[int, float]] = {}

    def __enter__(self) -> Self:
        self._before = self._session.observer
        self._session.observer = self._observe
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.observer = self._before

    @contextmanager
    def _observe(self, plan: Plan) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with nullcontext() if self._before is None else self._before(plan):
                yield
        finally:
            calls, seconds = self._ran.get(plan, (0, 0.0))
            self._ran[plan] = (calls + 1, seconds + time.perf_counter() - start)

    def ran(self) -> tuple[Ran, ...]:
        """What ran so far, one row for each request and kernel, in the order of their first call."""
        rows: dict[tuple[Request, str, str], tuple[int, float]] = {}
        for plan, (calls, seconds) in self._ran.items():
            key = plan.request, plan.provider, kernel_name(type(plan))
            before = rows.get(key, (0, 0.0))
            rows[key] = before[0] + calls, before[1] + seconds
        return tuple(Ran(*key, calls, seconds) for key, (calls, seconds) in rows.items())
