"""Must-fail controls: backends so wrong that every run of them has to be red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket.operators import Cache, Reason, Support, Unsupported
from opsocket_conformance.operators.attention import oracle
from opsocket_conformance.power.fault import Fault, Hook

_ABSENT: Final = (Reason("op", "op", "any", "an operator that this backend has"),)


def _control(name: str, wrong: str, op: str = "*", **hooks: Any) -> Fault:
    return Fault(op, name=f"control: {name}", category="control", wrong=wrong, **hooks)


def _each(result: Any, change: Callable[[Any], Any]) -> Any:
    """A result with each of its arrays changed."""
    if isinstance(result, tuple):
        return tuple(_each(part, change) for part in result)
    if isinstance(result, Cache):
        return result.with_planes({name: change(plane) for name, plane in result.planes.items()})
    return None if result is None else change(result)


def _filled(value: float) -> Hook:
    """Every element is the same; as a byte or an integer where it must be."""

    def result(plan: Any, right: Any, args: Any) -> Any:
        session = plan.session

        def change(array: Any) -> Any:
            info = session.describe(array)
            whole = info.dtype.startswith(("i", "u"))
            fill = np.full(info.shape, (0 if np.isnan(value) else int(value)) if whole else value)
            return session.write(array, fill.astype(np.int64 if whole else np.float32))

        return _each(right, change)

    return result


def _nothing_done(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The caller's memory, as it was: an output given, a cache, or what the right result's place held before."""
    given = kwargs.get("out")
    if plan.request.op in ("cache_write", "cache_move", "cache_copy_blocks"):
        caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
        return caches[-1]
    if given is None:
        return _each(plan.right(*args, **kwargs), lambda array: _empty_like(plan, array))
    held = {name: value for name, value in kwargs.items() if name not in ("out", "lse_out")}
    result = plan.right(*args, **held)
    return (given, *result[1:]) if isinstance(result, tuple) else given


def _empty_like(plan: Any, array: Any) -> Any:
    info = plan.session.describe(array)
    return plan.session.empty(info.shape, info.dtype)


def _uninitialized(plan: Any, right: Any, args: Any) -> Any:
    return _each(right, lambda array: _empty_like(plan, array))


def _input_returned(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first input takes the output's place, where it has its shape."""
    result = plan.right(*args, **kwargs)
    out = result[0] if isinstance(result, tuple) else result
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, plan.session.array_type)), None)
    if (
        first is None
        or isinstance(out, Cache)
        or plan.session.describe(first).shape != plan.session.describe(out).shape
    ):
        return _filled(0.0)(plan, result, args)
    values = plan.session.download(first)
    out = plan.session.write(out, values if values.dtype.kind != "f" else values.astype(np.float32))
    return (out, *result[1:]) if isinstance(result, tuple) else out


def _asks_the_oracle(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return oracle.attention(oracle.Problem(plan.request.spec, plan.batch, np.zeros(0), [], []))


def _refused(session: Any, request: Any, batch: Any) -> Any:
    raise Unsupported(_ABSENT)


FAULTS: Final = (
    _control("zeros", "Every result is 0.", result=_filled(0.0)),
    _control("constant", "Every result is 1: all that is only compared with itself agrees.", result=_filled(1.0)),
    _control("NaN", "Every result is NaN.", result=_filled(np.nan)),
    _control("nothing done", "Results are what was there before.", run=_nothing_done),
    _control("uninitialized", "Results are new memory.", result=_uninitialized),
    _control("input returned", "The first input is handed back.", run=_input_returned),
    _control("the reference's output", "The oracle is called for the answer.", "attention", run=_asks_the_oracle),
    _control(
        "everything unsupported",
        "Every request is denied, consistently.",
        supports=lambda right: Support("none", reasons=_ABSENT),
        session={"plan": _refused},
    ),
)
