"""A fault: a small wrapper over a correct session, so that it runs on any backend. The suite has to see through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from opsocket.operators import Request, Session
from opsocket_conformance.findings import Host

Hook = Callable[..., Any]


def _unchanged(value: Any, *others: Any) -> Any:
    return value


def _passed_on(args: Any, kwargs: Any) -> Any:
    return args, kwargs


def _returned(plan: Any, result: Any, args: Any) -> Any:
    return result


@dataclass(frozen=True)
class Fault:
    """Where a correct backend goes wrong. Each hook is given what would be right, and returns what is done instead.

    op: the operator that is hit. request: what is planned. batch: what `update` gets. args: (args, kwargs) of `run`.
    result: (plan, result, args) -> result of `run`. tensors: (tensors, request), before a weight is prepared.
    supports: the answer to `supports`. reports: whether kernels report themselves; provider: the name they then give.
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


class FaultyPlan:
    """Stands before a plan, and says that it is the plan that was asked for."""

    def __init__(self, plan: Any, request: Request, fault: Fault) -> None:
        self._plan, self._fault = plan, fault
        self.request, self.provider, self.batch = request, fault.provider or plan.provider, None
        self.batch_type = plan.batch_type

    def update(self, batch: Any) -> None:
        self._plan.update(self._fault.batch(batch))
        self.batch = batch

    def run(self, *args: Any, **kwargs: Any) -> Any:
        session = self._plan.session
        observer = session.observer
        args, kwargs = self._fault.args(args, kwargs)
        session.observer = (lambda plan: observer(self)) if self._fault.reports else (lambda plan: nullcontext())
        try:
            result = self._plan.run(*args, **kwargs)
        finally:
            session.observer = observer
        return self._fault.result(self._plan, result, args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)


class FaultySession:
    """A session in which one operator is broken, and which otherwise hands everything on."""

    def __init__(self, session: Session, fault: Fault, **attributes: Any) -> None:
        self.__dict__.update(_session=session, _fault=fault, **attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._session, name, value)

    def supports(self, request: Request) -> Any:
        right = self._session.supports(request)
        hit = request.op == self._fault.op and self._fault.supports is not None
        return self._fault.supports(right) if hit else right

    def plan(self, request: Request, batch: Any = None) -> Any:
        if request.op != self._fault.op:
            return self._session.plan(request, batch)
        plan = FaultyPlan(self._session.plan(self._fault.request(request)), request, self._fault)
        if batch is not None:
            plan.update(batch)
        return plan

    def prepare_weight(self, request: Request, tensors: Mapping[str, Host]) -> Any:
        if request.op == self._fault.op:
            tensors = self._fault.tensors(dict(tensors), request)
        return self._session.prepare_weight(request, tensors)
