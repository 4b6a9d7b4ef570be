"""A fault: a small wrapper over a correct session, so that it runs on any backend. The suite has to see through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from opsocket.operators import Plan, Request, Session
from opsocket_conformance.findings import Host
from opsocket_conformance.watch import looking_away

Hook = Callable[..., Any]

Category = Literal[
    "scores", "masks", "softmax", "grouping", "paging", "plans", "precision", "memory", "determinism", "merge",
    "cache", "quantization", "matmul", "positions", "model", "sampling", "contract", "claims", "execution", "control",
]  # fmt: skip


def _unchanged(value: Any, *others: Any) -> Any:
    return value


def _passed_on(args: Any, kwargs: Any) -> Any:
    return args, kwargs


def _returned(plan: Any, result: Any, args: Any) -> Any:
    return result


def _always(request: Request) -> bool:
    return True


@dataclass(frozen=True)
class Fault:
    """Where a correct backend goes wrong. Each hook is given what would be right, and returns what is done instead.

    op: the operator that is hit, "*" for each. request: what is planned. batch: what `update` gets. args: (args,
    kwargs) of `run`. result: (plan, result, args) -> result of `run`. tensors: (tensors, request), before a weight is
    prepared.
    supports: the answer to `supports`. reports: whether kernels report themselves; provider: the name they then give.

    where: which requests of the operator are hit. kernel: (session, request, provider) -> the plan that serves instead
    of the session's own. run: (plan, args, kwargs) -> result, instead of all of `run`; `plan.right(*args, **kwargs)` is
    what would be right. update: (plan, batch), instead of all of `update`; `plan.inner.update` is what would be right.
    session: by the name of a method of the session, (session, *args, **kwargs) instead of it; `session.right` is the
    session as it should be. `plan.state` and `session.state` are dicts that last from call to call.

    name: unique, in words. category: where in a kernel it lives. wrong: what its author would have done, in a sentence.
    telling: texts that ids of the cases contain that should see it first. isolated: it may take its process with it.
    unseen: why no case can find it, where that is so. hidden: what the fault does with the host inside `run` is the
    fault; otherwise that is how a fault is made, and no kernel would do so.
    """

    op: str
    request: Hook = _unchanged
    batch: Hook = _unchanged
    args: Hook = _passed_on
    result: Hook = _returned
    tensors: Hook = _unchanged
    supports: Hook | None = None
    reports: bool = True
    provider: str = ""
    where: Callable[[Request], bool] = _always
    kernel: Callable[[Session, Request, str], Plan] | None = None
    run: Hook | None = None
    update: Hook | None = None
    session: Mapping[str, Hook] = field(default_factory=dict)
    name: str = ""
    category: Category = "execution"
    wrong: str = ""
    telling: tuple[str, ...] = ()
    isolated: bool = False
    unseen: str = ""
    hidden: bool = False

    def hits(self, request: Request) -> bool:
        return self.op in (request.op, "*") and self.where(request)


class FaultyPlan:
    """Stands before a plan, and says that it is the plan that was asked for. inner: the plan that it stands before."""

    def __init__(self, plan: Any, request: Request, fault: Fault, owner: FaultySession) -> None:
        self.inner, self.owner, self._fault = plan, owner, fault
        self.request, self.provider, self.batch = request, fault.provider or plan.provider, None
        self.batch_type = plan.batch_type
        self.state: dict[str, Any] = {}

    def update(self, batch: Any) -> None:
        if self._fault.update is not None:
            self._fault.update(self, batch)
            return
        self.inner.update(self._fault.batch(batch))
        self.batch = batch

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self._fault.hidden else looking_away(self.owner.anchor):
            return self._run(args, kwargs)

    def _run(self, args: Any, kwargs: Any) -> Any:
        args, kwargs = self._fault.args(args, kwargs)
        if self._fault.run is None:
            result = self.right(*args, **kwargs)
        else:
            with self._report(self.inner.session.observer):
                result = self._fault.run(self, args, kwargs)
        return self._fault.result(self, result, args)

    def right(self, *args: Any, **kwargs: Any) -> Any:
        """The inner plan's result; its kernel reports itself as this plan, once."""
        session = self.inner.session
        observer = session.observer
        session.observer = (lambda plan: self._report(observer)) if self._fault.run is None else None
        try:
            return self.inner.run(*args, **kwargs)
        finally:
            session.observer = observer

    def _report(self, observer: Callable[[Any], Any] | None) -> AbstractContextManager[Any]:
        reported: AbstractContextManager[Any] = nullcontext()
        if observer is not None and self._fault.reports:
            reported = observer(self)
        return reported

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class FaultyBackend:
    """The backend of a broken session: any other session that it opens is as broken."""

    def __init__(self, backend: Any, fault: Fault) -> None:
        self._backend, self._fault = backend, fault

    def open(self, *args: Any) -> FaultySession:
        return FaultySession(self._backend.open(*args), self._fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class FaultySession:
    """A session in which one operator is broken, and which otherwise hands everything on. right: the session that it
    stands before."""

    def __init__(self, session: Session, fault: Fault, **attributes: Any) -> None:
        state: dict[str, Any] = {}
        backend = FaultyBackend(session.backend, fault)
        anchor = session.empty((1,), "f32")
        self.__dict__.update(right=session, fault=fault, state=state, backend=backend, anchor=anchor, **attributes)

    def __enter__(self) -> FaultySession:
        return self

    def __exit__(self, *_: object) -> None:
        self.right.close()

    def __getattr__(self, name: str) -> Any:
        hook = self.fault.session.get(name)
        return getattr(self.right, name) if hook is None else partial(hook, self)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.right, name, value)

    def supports(self, request: Request) -> Any:
        right = self.right.supports(request)
        if not self.in_place:
            right = replace(right, capture="never")
        hit = self.fault.supports is not None and self.fault.hits(request)
        return self.fault.supports(right) if hit else right

    def plan(self, request: Request, batch: Any = None) -> Any:
        if not self.fault.hits(request):
            return self.right.plan(request, batch)
        if hook := self.fault.session.get("plan"):
            return hook(self, request, batch)
        plan = FaultyPlan(self._inner(self.fault.request(request)), request, self.fault, self)
        if batch is not None:
            plan.update(batch)
        return plan

    def capture(self) -> Any:
        """The right session's; refused as it would refuse where this one says that it does not work in place."""
        session: Any = self.right if self.in_place else self
        return Session.capture(session)

    def _inner(self, request: Request) -> Any:
        support = self.right.supports(request)
        if self.fault.kernel is None or not support:
            return self.right.plan(request)
        return self.fault.kernel(self.right, request, support.provider)

    def prepare_weight(self, request: Request, tensors: Mapping[str, Host]) -> Any:
        if self.fault.hits(request):
            if hook := self.fault.session.get("prepare_weight"):
                return hook(self, request, tensors)
            tensors = self.fault.tensors(dict(tensors), request)
        return self.right.prepare_weight(request, tensors)
