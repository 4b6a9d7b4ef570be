"""A plan: one prepared operator, and what holds for every kernel whatever it computes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

from opsocket.operators.capture import CaptureLevel, Graph
from opsocket.operators.contract import Checked
from opsocket.operators.errors import BackendError, ContractError, OpsocketError
from opsocket.operators.request import Request, Spec

if TYPE_CHECKING:
    from opsocket.operators.device import Array
    from opsocket.operators.session import Session


class Plan(Checked, ABC):
    """One prepared operator. `plan` may allocate, tune and synchronize; `run` does none of these.

    A kernel is a subclass of one operator's plan class (`AttentionPlan`, `MatmulPlan`, ...) that implements `_run`,
    and `_update` where the operator takes a batch. Core validates before either is called. spec_type: the operator's.
    capture_level: the kernel's own, in a native graph; a `CommandList` takes any kernel. any_rows: whether it heeds
    `session.rows`, or runs on as many rows as its batch says.
    """

    spec_type: ClassVar[type[Spec] | None] = None
    batch_type: ClassVar[type | None] = None
    capture_level: ClassVar[CaptureLevel] = "never"
    any_rows: ClassVar[bool] = False
    _sealed = (
        "run", "update", "launch", "spec_type", "batch_type",
        "_call", "_again", "_record_in", "_check_room", "_check_level",
    )  # fmt: skip

    def __init__(self, session: Session, request: Request, provider: str) -> None:
        self.session = session
        self.request = request
        self.provider = provider
        self.batch: Any = None
        self._graphs: list[ref[Graph]] = []
        # Content, which a batch and deep checks look at, is no part of what `_repeat` knows.
        self._may_repeat = self.batch_type is None and session.options.checked == "shapes"
        self._setup()

    def _setup(self) -> None:
        """Hook: prepare what depends on the request alone."""

    def _update(self, batch: Any) -> None:
        """Hook: take a validated batch. Writes at stable addresses; no allocation, no synchronization."""

    def _repeat(self, args: tuple[Any, ...]) -> Any:
        """Hook, for speed alone: run at once, with arguments that core has not validated, and return the result.

        args: `_run`'s. None, with nothing done, unless `_run` was called before with arrays of the same shapes, dtypes,
        strides and devices, and with the same objects for whatever is no array: validation would pass as it did then.
        """
        return None

    def _validate_batch(self, batch: Any) -> None:
        """Core's check of a batch on its host arrays; each operator has its own."""

    def _check_room(self, batch: Any, *room: Any) -> None:
        """Core's check of a batch against the arrays of a run, given as what they have room for."""

    def _check_level(self, batch: Any, captured: Any, level: CaptureLevel) -> None:
        """Core's check of a batch against the one that a run was captured with."""

    def update(self, batch: Any) -> None:
        """Give the plan this step's batch. A refused batch leaves the plan as it was.

        What a living graph has recorded of this plan must be able to run with it: `ContractError` where the recorded
        arrays have no room for the batch, or the kernel's capture level does not allow it.
        """
        if self.session.closed:
            raise self.session._closed_error()
        if self.batch_type is None:
            raise ContractError("batch", f"None: {self.request.op} takes no batch", type(batch).__name__)
        if not isinstance(batch, self.batch_type):
            raise ContractError("batch", self.batch_type.__name__, type(batch).__name__)
        if self.session.capturing is not None:
            raise ContractError("batch", "no update under capture: a replay knows one batch of each plan", "an update")
        self._validate_batch(batch)
        for graph in self._recorded_in():
            for room, captured in graph.limits_of(self):
                self._check_room(batch, *room)
                self._check_level(batch, captured, graph.level(type(self)))
        self._update(batch)
        self.batch = batch

    def _call(
        self,
        kernel: Callable[..., Any],
        *args: Any,
        room: tuple[Any, ...] = (),
        outs: Mapping[str, Array] | None = None,
    ) -> Any:
        """Run the kernel on validated arguments, and have it recorded where the session captures.

        room: what `_check_room` counts in the arrays. outs: the output arrays that `run` could be given, by name.
        """
        if self.session.closed:
            raise self.session._closed_error()
        if self.batch_type is not None:
            if self.batch is None:
                raise ContractError("batch", "plan.update(batch) before run", None)
            self._check_room(self.batch, *room)
        graph = self.session.capturing
        if graph is None:
            return self.launch(kernel, args)
        level = graph.check_run(self, outs or {})
        self._check_level(self.batch, self.batch, level)
        result = self.launch(kernel, args)
        graph.add_run(self, kernel, args, room, result)
        return result

    def _record_in(self, graph: Graph) -> None:
        """Take in that a graph holds a run of this plan."""
        self._graphs = [*map(ref, self._recorded_in()), ref(graph)]

    def _recorded_in(self) -> list[Graph]:
        """The living graphs that hold a run of this plan."""
        return [graph for kept in self._graphs if (graph := kept()) is not None]

    def _again(self, *args: Any) -> Any:
        """The result of a run like one before, without validation; None where that is not to be had."""
        session = self.session
        if not self._may_repeat or session.observer is not None or session.capturing is not None or session.closed:
            return None
        return self._repeat(args)

    def launch(self, kernel: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call the kernel: report it to the session's observer, and wrap what it raises of its own."""
        observer = self.session.observer
        try:
            if observer is None:
                return kernel(*args)
            with observer(self):
                return kernel(*args)
        except OpsocketError:
            raise
        except Exception as error:
            raise BackendError(self.request.op, f"{self.session.device}/{self.provider}", error) from error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request.op} on {self.session.device} by {self.provider}>"
