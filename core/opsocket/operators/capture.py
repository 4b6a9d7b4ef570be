"""A step recorded once and run again in one call: `with session.capture() as graph: ...`, then `graph.replay()`.

    with session.capture() as graph:
        norm.run(x, weight, out=h)
        attention.run(q, cache, out=y)
    attention.update(next_batch)
    graph.replay()                      # the same arrays, the next batch
    twice = graph.repeated([Exchange(), Exchange([(x, y)], {attention: other})])
    twice.replay()                      # and then on y, with the batch of another plan

A graph holds runs, with the arrays that they were given, and no batch: a replay takes every plan's batch as the last
`update` left it. So what varies from step to step is a plan's batch or the content of an array, written before the
replay by `session.write`. Nothing but runs of plans belongs in the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from operator import is_
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from opsocket.operators.contract import Checked
from opsocket.operators.errors import ContractError, Reason, Unsupported

if TYPE_CHECKING:
    from types import TracebackType

    from opsocket.operators.device import Array
    from opsocket.operators.plan import Plan
    from opsocket.operators.session import Session

CaptureLevel = Literal["never", "decode", "uniform", "any"]
"""Which batches a kernel can be captured and replayed with. decode: q_len 1 everywhere. uniform: one q_len, that of the
captured batch. Requests of q_len 0, which are padding, are legal in both. Without queries in the batch: as any."""


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded run. args: what the kernel was given. room: what these arrays have room for, as the plan counts it.
    batch: a copy of the one captured with. result: what the kernel returned, and where replays leave it.
    """

    plan: Plan
    kernel: Callable[..., Any]
    args: tuple[Any, ...]
    room: tuple[Any, ...]
    batch: Any
    result: Any


@dataclass(frozen=True, eq=False)
class Exchange:
    """What the same runs are made with instead. arrays: (old, new), alike in shape, dtype, strides and device. plans:
    old to new, of equal requests, by the same kernel."""

    arrays: Sequence[tuple[Array, Array]] = ()
    plans: Mapping[Plan, Plan] = field(default_factory=dict)

    def check(self, graph: Graph) -> None:
        """ContractError where something is not alike, or does not occur in a graph's runs, or where these can't be made
        with the batches that the new plans have."""
        for old, new in self.arrays:
            want, got = graph.session.describe(old), graph.session.describe(new)
            if want != got:
                raise ContractError("arrays", f"an array like {want}", got)
        for plan, other in self.plans.items():
            if type(plan) is not type(other) or plan.request != other.request or plan.session is not other.session:
                raise ContractError("plans", f"a plan like {plan!r}", repr(other))
            if other.batch_type is not None and other.batch is None:
                raise ContractError("plans", "plan.update(batch) before", None)
        taken = {id(one) for call in graph.calls for one in (call.plan, *call.args, *_results(call.result))}
        if not taken.issuperset(map(id, (*self.plans, *(old for old, _ in self.arrays)))):
            raise ContractError("arrays, plans", "what the graph's runs take", "others")
        for call in graph.calls:
            found = self.plans.get(call.plan)
            if found is not None and found.batch_type is not None:
                found._check_room(found.batch, *call.room)
                found._check_level(found.batch, call.batch, graph.level(type(found)))

    def of(self, call: Call, by_id: Mapping[int, Array], batches: Mapping[Plan, Any]) -> Call:
        """A run with this exchanged; itself where that changes nothing."""
        plan, old = self.plans.get(call.plan, call.plan), (*call.args, *_results(call.result))
        new = [by_id.get(id(one), one) for one in old]
        if plan is call.plan and all(map(is_, new, old)):
            return call
        args, results = tuple(new[: len(call.args)]), tuple(new[len(call.args) :])
        kernel = call.kernel if plan is call.plan else getattr(plan, call.kernel.__name__)
        result = results if isinstance(call.result, tuple) else results[0]
        return Call(plan, kernel, args, call.room, batches.get(plan, call.batch), result)


def check_rows(rows: Mapping[int, int], recorded: Mapping[int, int] | None = None) -> None:
    """ContractError where numbers of rows are none, or not of the same arrays as those recorded with."""
    if recorded is not None and rows.keys() != recorded.keys():
        raise ContractError("rows", f"numbers of rows for {sorted(recorded)}", sorted(rows))
    for most, count in rows.items():
        if not 0 <= count <= most:
            raise ContractError("rows", f"0 to {most}", count)


def _results(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


class Graph(Checked, ABC):
    """The runs inside one capture. They have run, once, when the block is left.

    A backend's way to capture is a subclass: `_begin` and `_end` around the recording, `_replay` after it. A replay
    writes what the captured runs wrote: their `out=` arrays, the caches they were given, and what they returned.
    """

    _sealed = ("replay", "repeated", "check_run", "limits_of", "add_run")
    repeats: ClassVar[bool] = False
    """Whether `repeated` can be asked: whether `_end` makes a graph of `calls` that have not run."""
    any_rows: ClassVar[bool] = False
    """Whether it can be recorded and replayed with `rows`, which `session.rows` then has while something runs."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.calls: list[Call] = []
        self._entered = self._recorded = self.broken = False
        self._limits: dict[Plan, list[tuple[tuple[Any, ...], Any]]] = {}
        self._batches: dict[Plan, Any] = {}
        self.rows: dict[int, int] = {}

    @classmethod
    def level(cls, kernel: type[Plan]) -> CaptureLevel:
        """How this kind of graph captures a kernel: as the kernel says."""
        return kernel.capture_level

    def _begin(self) -> None:
        """Hook: the first run is about to be recorded."""

    def _end(self) -> None:
        """Hook: the last run has been recorded, or `self.broken`: the block has raised. When this returns, all that was
        recorded has run or is enqueued."""

    @abstractmethod
    def _replay(self) -> None:
        """Hook: run `calls` again, in their order, each plan with the batch that it has now."""

    def replay(self, rows: Mapping[int, int] | None = None) -> None:
        """All recorded runs again, into the same arrays, with the batches that the plans have now.

        rows: as in `session.capture`, with the same keys; None: all rows.
        """
        if self.session.closed:
            raise self.session._closed_error()
        if not self._recorded:
            raise ContractError("graph", "a capture that ended without an error", "one that did not")
        if self.session.capturing is not None:
            raise ContractError("graph", "a replay outside of every capture", "one inside")
        if rows is not None:
            check_rows(rows, self.rows)
        self.session.rows = rows
        try:
            self._replay()
        finally:
            self.session.rows = None

    def repeated(self, exchanges: Sequence[Exchange]) -> Graph:
        """A graph of all recorded runs, once for each exchange, with that exchanged. Nothing runs before its first
        replay: recording as much would call every kernel."""
        if not self.repeats:
            raise ContractError("graph", "a kind of graph with `repeats`", type(self).__name__)
        if not self._recorded:
            raise ContractError("graph", "a capture that ended without an error", "one that did not")
        graph = type(self)(self.session)
        graph._entered, graph.rows = True, self.rows
        graph._begin()
        for exchange in exchanges:
            exchange.check(self)
            by_id = {id(old): new for old, new in exchange.arrays}
            batches = {plan: deepcopy(plan.batch) for plan in exchange.plans.values()}
            graph.calls += [exchange.of(call, by_id, batches) for call in self.calls]
        graph._end()
        graph._recorded = True
        for plan in dict.fromkeys(call.plan for call in graph.calls):
            plan._record_in(graph)
        return graph

    def add_run(self, plan: Plan, kernel: Callable[..., Any], args: tuple[Any, ...], room: Any, result: Any) -> None:
        """Take down a run. All runs of a plan are captured with one batch, of which one copy is kept."""
        if plan not in self._batches:
            self._batches[plan] = deepcopy(plan.batch)
            plan._record_in(self)
        self.calls.append(Call(plan, kernel, args, room, self._batches[plan], result))

    def check_run(self, plan: Plan, outs: Mapping[str, Array]) -> CaptureLevel:
        """The level at which a run is captured; an error where no replay could do the same."""
        level = self.level(type(plan))
        if level == "never":
            reason = Reason("capture", f"capture of {plan.request.op}", level, ("decode", "uniform", "any"))
            raise Unsupported([reason], request=plan.request, backend=str(self.session.device))
        if self.rows and not plan.any_rows:
            reason = Reason("capture", f"rows of {plan.request.op} by {plan.provider}", "as recorded", "any number")
            raise Unsupported([reason], request=plan.request, backend=str(self.session.device))
        for name, array in outs.items():
            if array is None:
                raise ContractError(name, "an array under capture: a replay writes where the captured run wrote", None)
        return level

    def limits_of(self, plan: Plan) -> list[tuple[tuple[Any, ...], Any]]:
        """(room, batch captured with) of each recorded run of a plan, equal rooms once, since all runs of a plan are
        captured with one batch. Nothing as long as the graph can't be replayed."""
        if not self._recorded:
            return []
        if plan not in self._limits:
            rooms = {call.room: call.batch for call in self.calls if call.plan is plan}
            self._limits[plan] = list(rooms.items())
        return self._limits[plan]

    def __enter__(self) -> Self:
        if self.session.closed:
            raise self.session._closed_error()
        if self.session.capturing is not None:
            raise ContractError("capture", "one capture at a time in a session", "another inside")
        if self._entered:
            raise ContractError("capture", "a graph that is recorded once", "a second time")
        self._entered, self.session.capturing = True, self
        try:
            self._begin()
        except BaseException:
            self.session.capturing = None
            raise
        self.session.rows = self.rows or None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.broken, self.session.rows = kind is not None, None
        try:
            self._end()
            self._recorded = not self.broken
        finally:
            self.session.capturing = None


class CommandList(Graph):
    """A graph of every kernel of a session that works in place and finishes, or orders, its work by itself.

    A replay calls the kernels again without validating what core has validated: it saves that time and no other.
    """

    repeats = True

    @classmethod
    def level(cls, kernel: type[Plan]) -> CaptureLevel:
        return "any"

    @abstractmethod
    def _copy(self, target: Array, source: Array) -> None:
        """Hook: the contents of one array into another of the same shape and dtype."""

    def _replay(self) -> None:
        for call in self.calls:
            self._again(call)

    def _again(self, call: Call) -> None:
        """One recorded run again, its results where the first run left them."""
        result = call.plan.launch(call.kernel, call.args)
        if result is not call.result:
            self._keep(call.result, result)

    def _keep(self, captured: Any, result: Any) -> None:
        """What an operator returns without a parameter for it (a residual sum) goes where it was when captured."""
        if isinstance(captured, tuple):
            for old, new in zip(captured, result, strict=True):
                self._keep(old, new)
        elif result is not captured:
            self._copy(captured, result)
