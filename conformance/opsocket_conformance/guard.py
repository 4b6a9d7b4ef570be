"""While a kernel runs, the oracle is closed: a backend that answers with the reference's own output is found out.

The same door can be listened at: a second, independent oracle is held against the first by what the first was asked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Listener = Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]
"""Is told an entry point's name, the arguments, the keyword arguments, and what was answered."""

_running: ContextVar[str] = ContextVar("running", default="")
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class OracleCalled(Exception):
    """A kernel called the oracle that judges it."""


@contextmanager
def kernel_running(name: str) -> Iterator[None]:
    """Mark that a backend's code runs in this context."""
    token = _running.set(name)
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
        if name := _running.get():
            raise OracleCalled(f"{name} called the oracle's {function.__name__}")
        answer = function(*args, **kwargs)
        if listener := _listener.get():
            listener(function.__name__, args, kwargs, answer)
        return answer

    return guarded
