"""Ways to break attention: other stages, another request or batch, results changed after they were right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from opsocket.operators import Plan, Request, Session
from opsocket_conformance.power.fault import Category, Fault, Hook
from opsocket_conformance.power.plain_attention import Bools, Stages, plain

Floats = npt.NDArray[Any]
Spec = Any


def fault(name: str, category: Category, wrong: str, *telling: str, **hooks: Any) -> Fault:
    """A fault of attention. telling: what ids of cases contain that should see it first."""
    return Fault("attention", name=f"attention: {name}", category=category, wrong=wrong, telling=telling, **hooks)


def stages(**methods: Callable[..., Any]) -> Callable[[Session, Request, str], Plan]:
    """The plain kernel with some of its stages replaced."""
    return plain(cast(type[Stages], type("Broken", (Stages,), methods)))


def asks(**changes: Callable[[Spec], Any]) -> Hook:
    """Another request is planned: fields of its spec as functions of the spec."""
    return lambda request: replace(
        request, spec=replace(request.spec, **{name: change(request.spec) for name, change in changes.items()})
    )


def has(*names: str) -> Callable[[Request], bool]:
    """Requests whose spec has one of these fields set."""
    return lambda request: any(getattr(request.spec, name) not in (None, False) for name in names)


def batch(name: str, change: Callable[[npt.NDArray[Any]], Any]) -> Hook:
    """One array of the batch changed, where it is there."""

    def changed(given: Any) -> Any:
        array = getattr(given, name)
        return given if array is None else replace(given, **{name: change(np.array(array))})

    return changed


def given(**changes: Callable[[Session, Any], Any]) -> Hook:
    """A fault's `run`: the right kernel, some of whose named arguments are changed."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = dict(zip(("q", "kv", "sinks", "alibi", "tree_mask"), args, strict=False)) | kwargs
        for name, change in changes.items():
            if names.get(name) is not None:
                names[name] = change(plan.session, names[name])
        return plan.right(**names)

    return run


def on_host(change: Callable[[Floats], Floats]) -> Callable[[Session, Any], Any]:
    """A device array, changed on the host, as a new array of its type."""
    return lambda session, array: session.upload(change(session.download(array)), session.describe(array).dtype)


def both(seen: Bools, more: Any) -> Bools:
    """[n, m]: a mask, narrowed."""
    narrowed: Bools = seen & more
    return narrowed


def output(change: Callable[[Any, Floats], Floats]) -> Hook:
    """(plan, f32[T, Hq, Dv]) -> what is stored instead in the rows of the batch."""

    def result(plan: Any, right: Any, args: Any) -> Any:
        out, lse = right
        values = plan.session.download(out)[: int(plan.batch.q_indptr[-1])].astype(np.float32)
        return plan.session.write(out, change(plan, values)), lse

    return result


def lse(change: Callable[[Any, Floats], Floats]) -> Hook:
    """(plan, f32[T, Hq]) -> what is stored instead of the LSE, where there is one."""

    def result(plan: Any, right: Any, args: Any) -> Any:
        out, found = right
        if found is None:
            return right
        values = plan.session.download(found)[: int(plan.batch.q_indptr[-1])]
        return out, plan.session.write(found, change(plan, values))

    return result
