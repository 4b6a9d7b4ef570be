"""While a kernel runs, the oracle is closed: a backend that answers with the reference's own output is found out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_running: ContextVar[str] = ContextVar("running", default="")


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


def judge_only(function: Callable[P, R]) -> Callable[P, R]:
    """An entry point of the oracle: raises `OracleCalled` under `kernel_running`."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        if name := _running.get():
            raise OracleCalled(f"{name} called the oracle's {function.__name__}")
        return function(*args, **kwargs)

    return guarded
