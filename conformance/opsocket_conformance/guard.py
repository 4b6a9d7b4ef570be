"""While a kernel runs, what could answer in its place is closed: the oracle, core's reference dequantizers, and every
other backend. A receipt alone can lie; a backend that answers with the reference's own output is found out here.

The oracle's door can be listened at: a second, independent oracle is held against the first by what that was asked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from opsocket.operators import Plan, Session
from opsocket.quantization import GroupedWeight, QuantFormat, ScaledFloats

P = ParamSpec("P")
R = TypeVar("R")

Listener = Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]
"""Is told an entry point's name, the arguments, the keyword arguments, and what was answered."""


@dataclass(frozen=True)
class _Running:
    """kernel: in words. backend: whose."""

    kernel: str
    backend: str


_running: ContextVar[_Running | None] = ContextVar("running", default=None)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class OracleCalled(Exception):
    """A kernel called the oracle that judges it, or core's reference."""


class OtherBackendCalled(Exception):
    """A kernel had another backend do its work."""


@contextmanager
def kernel_running(name: str, session: Session | None = None) -> Iterator[None]:
    """Mark that a backend's code runs in this context: the kernel `name` of a session."""
    token = _running.set(_Running(name, "" if session is None else session.backend.info.name))
    try:
        yield
    finally:
        _running.reset(token)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every question to the oracle in this context, and of the answer."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def judge_only(function: Callable[P, R]) -> Callable[P, R]:
    """An entry point of the oracle: raises `OracleCalled` under `kernel_running`."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        if running := _running.get():
            raise OracleCalled(f"{running.kernel} called the oracle's {function.__name__}")
        answer = function(*args, **kwargs)
        if listener := _listener.get():
            listener(function.__name__, args, kwargs, answer)
        return answer

    return guarded


def _close(owner: type, name: str) -> None:
    """Make a method of core raise under `kernel_running`, for everyone who holds its class."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def closed(*args: Any, **kwargs: Any) -> Any:
        if running := _running.get():
            raise OracleCalled(f"{running.kernel} called {owner.__name__}.{name}, which is for loading and for tests")
        return method(*args, **kwargs)

    setattr(owner, name, closed)


def _close_other_backends() -> None:
    launch = Plan.launch

    @functools.wraps(launch)
    def launched(plan: Plan, *args: Any) -> Any:
        running, backend = _running.get(), plan.session.backend.info.name
        if running and running.backend not in ("", backend):
            raise OtherBackendCalled(f"{running.kernel} called {plan.request.op} of backend {backend!r}")
        return launch(plan, *args)

    Plan.launch = launched  # type: ignore[assignment, method-assign]


_CLOSED: Final = ((QuantFormat, "reference"), (GroupedWeight, "dequantize"), (ScaledFloats, "dequantize"))
for _owner, _name in _CLOSED:
    _close(_owner, _name)
_close_other_backends()
