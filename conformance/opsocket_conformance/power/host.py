"""Wrong kernels in NumPy: what a fault computes on the host, stored where the right kernel stored its own result."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket.operators import Session
from opsocket_conformance.floats import round_to

Float64 = npt.NDArray[np.float64]
Values = Any
"""What a wrong kernel returns: an array, or a tuple of them, as the right one does."""


def recomputed(compute: Callable[..., Values]) -> Callable[..., Any]:
    """A fault's `run`. The right kernel runs first, so that it refuses what it should; then `compute(plan, **inputs)`
    is stored over its results, rounded to their types. inputs: the arguments of `run` by name, without what results go
    to; arrays come as float64 or integers on the host. What it returns may have fewer rows: the rest stays as it is."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        session = plan.session
        given = inspect.signature(plan.inner.run).bind(*args, **kwargs).arguments
        inputs = {name: on_host(session, value) for name, value in given.items() if name.split("_")[-1] != "out"}
        result = plan.right(*args, **kwargs)
        if not isinstance(result, tuple):
            return stored(session, result, compute(plan, **inputs))
        return tuple(
            stored(session, array, values) for array, values in zip(result, compute(plan, **inputs), strict=True)
        )

    return run


def partly_written(left: Callable[[npt.NDArray[Any]], Any]) -> Callable[..., Any]:
    """A fault's `run`: the right result, but for the elements that `left` picks of it (a view), which stay as they were
    before, or 0 where the caller gave no array to write to."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        out = kwargs.get("out")
        before = None if out is None else plan.session.download(out)
        result = plan.right(*args, **kwargs)
        first, *others = result if isinstance(result, tuple) else (result,)
        values = plan.session.download(first)
        left(values)[...] = 0 if before is None else left(before)
        first = stored(plan.session, first, values)
        return (first, *others) if others else first

    return run


def read_as_dense(plan: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A fault's `run`: the first input is read as if its rows followed each other; NaN stands for what lies between."""
    if not args:
        return plan.right(**kwargs)
    first, *others = args
    info = plan.session.describe(first)
    if info.strides is not None and 0 not in info.shape:
        rows, width = info.shape[0], math.prod(info.shape[1:])
        at = np.arange(rows * width)
        row, column = at // info.strides[0], at % info.strides[0]
        flat = plan.session.download(first).reshape(rows, width)
        values = np.where(column < width, flat[row, np.minimum(column, width - 1)], np.nan).astype(np.float32)
        first = plan.session.upload(values.reshape(info.shape), info.dtype)
    return plan.right(first, *others, **kwargs)


def on_host(session: Session, value: Any) -> Any:
    """A session's array on the host, floats as float64; anything else as it is."""
    if not isinstance(value, session.array_type):
        return value
    host = session.download(value)
    return host.astype(np.float64) if host.dtype.kind == "f" else host


def stored(session: Session, array: Any, values: npt.NDArray[Any] | None) -> Any:
    """`array` with `values` in its leading rows, rounded to nearest even; None leaves it alone."""
    if values is None:
        return array
    return session.write(array, values.astype(np.float32) if values.dtype.kind == "f" else values)


def rounded(values: Float64, dtype: str) -> Float64:
    """Rounded to the nearest f32, bf16 or f16."""
    return round_to(values, dtype).astype(np.float64)


def truncated(values: Float64, dtype: str) -> Float64:
    """Cut off to f32, bf16 or f16, towards zero."""
    nearest = round_to(values, dtype).astype(np.float64)
    below = {"f32": 23, "f16": 10, "bf16": 7}[dtype]
    _, exponent = np.frexp(nearest)
    step = np.ldexp(1.0, exponent - 1 - below)
    over = np.abs(nearest) > np.abs(values)
    return np.where(over & np.isfinite(nearest), nearest - np.sign(nearest) * step, nearest)
