"""What backends get wrong where a caller is wrong, or calls often: refusals, what they leave behind, and processes."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket.operators import BackendError, Cache, ContractError, Reason, ResourceError, Unsupported
from opsocket_conformance.power.fault import Category, Fault, Hook

_BATCHED: Final = ("attention", "cache_write")
_ARRAYS: Final = ("attention", "matmul", "rms_norm")
_REFUSALS: Final = ("negative[",)

Turn = Callable[[ContractError], Exception]


def _each(
    operators: tuple[str, ...], name: str, category: Category, wrong: str, telling: tuple[str, ...] = (), **hooks: Any
) -> tuple[Fault, ...]:
    return tuple(
        Fault(
            op,
            name=f"{op}: {name}" if op != "*" else f"any operator: {name}",
            category=category,
            wrong=wrong,
            telling=telling,
            **hooks,
        )
        for op in operators
    )


# ---- refusals


def _updates(turn: Turn) -> Hook:
    """A refused batch is refused another way."""

    def update(plan: Any, batch: Any) -> None:
        try:
            plan.inner.update(batch)
        except ContractError as error:
            raise turn(error) from None
        plan.batch = batch

    return update


def _runs(turn: Turn) -> Hook:
    """Refused arguments are refused another way."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return plan.right(*args, **kwargs)
        except ContractError as error:
            raise turn(error) from None

    return run


def _accepted(plan: Any, batch: Any) -> None:
    """What is wrong with a batch is left for the kernel to find out."""
    plan.batch = batch
    try:
        plan.inner.update(batch)
    except ContractError:
        plan.state["refused"] = batch


def _ran_anyway(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return plan.right(*args, **kwargs)
    except ContractError:
        return kwargs.get("out"), None


def _stays(plan: Any, batch: Any) -> None:
    plan.batch = batch
    plan.inner.update(batch)


def _written_first(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Outputs are cleared, then arguments are looked at."""
    for array in _written(plan, args, kwargs):
        first = plan.session.download(array)[:1]
        plan.session.write(array, np.zeros_like(first))
    return plan.right(*args, **kwargs)


def _written(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
    if plan.request.op.startswith("cache_") and caches:
        return list(caches[-1].planes.values())
    return [] if kwargs.get("out") is None else [kwargs["out"]]


def _renamed(error: ContractError) -> ContractError:
    return ContractError("argument", error.want, error.got)


class _OwnError(ContractError):
    """A backend's own idea of a ContractError."""


_TURNS: Final[tuple[tuple[str, str, Turn], ...]] = (
    ("a ValueError for a broken contract", "Python's own error comes through.", lambda e: ValueError(str(e))),
    ("another argument named", "The error names what the kernel calls it.", _renamed),
    (
        "Unsupported for a broken contract",
        "The caller's mistake is called a missing feature.",
        lambda e: Unsupported([Reason("argument", e.argument, str(e.got), str(e.want))]),
    ),
    (
        "BackendError for a broken contract",
        "The kernel finds out, too late.",
        lambda e: BackendError("attention", "plan", e),
    ),
    (
        "ResourceError for a broken contract",
        "A batch that is too large is called a lack of memory.",
        lambda e: ResourceError("batch", str(e.want), str(e.got)),
    ),
    ("an error type of its own", "A subclass that callers can't know.", lambda e: _OwnError(e.argument, e.want, e.got)),
)

_REFUSED: Final = (
    *(
        fault
        for name, wrong, turn in _TURNS
        for fault in _each(_BATCHED, f"update: {name}", "contract", wrong, _REFUSALS, update=_updates(turn))
    ),
    *(
        fault
        for name, wrong, turn in _TURNS[:3]
        for fault in _each(_ARRAYS, f"run: {name}", "contract", wrong, _REFUSALS, run=_runs(turn))
    ),
    *_each(_BATCHED, "batch not checked", "contract", "Wrong batches are taken.", _REFUSALS, update=_accepted),
    *_each(
        _ARRAYS, "arguments not checked", "contract", "Wrong arguments give some result.", _REFUSALS, run=_ran_anyway
    ),
    *_each(
        _BATCHED, "refused batch stays", "contract", "The batch is stored, then validated.", _REFUSALS, update=_stays
    ),
    *_each(
        (*_ARRAYS, "cache_write"),
        "written before it is refused",
        "contract",
        "Outputs are cleared, then arguments are checked.",
        _REFUSALS,
        run=_written_first,
    ),
)

# ---- calls


_KEPT: list[Any] = []
"""What a leaking kernel holds on to: as long as the process lives."""


def _leaks(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _KEPT.append(plan.session.empty((64,), "f32"))
    return plan.right(*args, **kwargs)


def _leaks_plans(session: Any, request: Any, batch: Any) -> Any:
    plan = session.right.plan(request, batch)
    _KEPT.append((plan, plan.session.empty((2048,), "f32")))
    return plan


def _waits(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    plan.session.synchronize()
    return plan.right(*args, **kwargs)


_SHARED: dict[str, Any] = {}
"""Scratch memory of all plans of all threads."""


def _through_shared_scratch(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first array given passes through memory that every call uses."""
    session = plan.session
    at = next((i for i, value in enumerate(args) if isinstance(value, session.array_type)), None)
    if at is None:
        return plan.right(*args, **kwargs)
    _SHARED["scratch"] = args[at]
    time.sleep(2e-4)
    taken = _SHARED["scratch"]
    same = session.describe(taken)[:2] == session.describe(args[at])[:2]
    return plan.right(*args[:at], taken if same else args[at], *args[at + 1 :], **kwargs)


_CALLS: Final = (
    *_each(
        ("*",),
        "leak in each call",
        "memory",
        "Each call keeps an array.",
        ("growth[", "of=run", "rms_norm"),
        run=_leaks,
    ),
    *_each(
        ("*",),
        "leak with each plan",
        "memory",
        "Plans are kept in a table for ever.",
        ("growth[", "of=plans"),
        session={"plan": _leaks_plans},
    ),
    *_each(
        ("*",),
        "scratch shared by threads",
        "execution",
        "Scratch memory belongs to the library.",
        ("law=threads",),
        run=_through_shared_scratch,
    ),
    *_each(
        ("attention",),
        "synchronizes in run",
        "execution",
        "run waits for all that came before.",
        ("contract[",),
        run=_waits,
        unseen="Where every call has finished when it returns, as on a CPU, waiting changes nothing "
        "(a simulated device counts it).",
        hidden=True,
    ),
)

# ---- the process


def _segfault(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    ctypes.string_at(0)


def _aborts(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    os.abort()


def _exits_at_once(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    os._exit(0)


def _exits(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise SystemExit(0)


def _hangs(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In native code, with the interpreter's lock: no Python signal handler gets a turn."""
    ctypes.PyDLL(None).sleep(10**6)


_PROCESS: Final = (
    *_each(("attention",), "segmentation fault", "execution", "A pointer of 0.", run=_segfault, isolated=True),
    *_each(("attention",), "abort", "execution", "An assertion of a library.", run=_aborts, isolated=True),
    *_each(
        ("attention",),
        "exit code 0",
        "execution",
        "The process ends, and calls it success.",
        run=_exits_at_once,
        isolated=True,
    ),
    *_each(("attention",), "SystemExit", "execution", "The kernel raises SystemExit.", run=_exits),
    *_each(("attention",), "hang", "execution", "The kernel never returns.", run=_hangs, isolated=True),
)

FAULTS: Final = (*_REFUSED, *_CALLS, *_PROCESS)
