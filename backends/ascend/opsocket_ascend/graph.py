"""Capture on an NPU: CANN's graphs, and between them, once more, the runs that can't be in one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from opsocket.operators import Call, CommandList, Plan, Reason
from opsocket_ascend.socs import soc_of

if TYPE_CHECKING:
    from opsocket_ascend.recorded import RecordedRuns


class Recordable(ABC):
    """Of plans that take batches and can be recorded by CANN: what a batch changes is at addresses that stay, or a list
    on the host that a task update renews.

    tasks: calls with such lists in one run, at most.
    """

    tasks: ClassVar[int] = 0

    @abstractmethod
    def graph_form(self) -> Hashable:
        """All that a recorded run holds of the batch, addresses too: it serves another one where this is equal.

        Once asked, batches are told in shapes that are as equal as can be.
        """


class NpuGraph(CommandList):
    """Takes every kernel, with any batch. Runs of plans without batches, or of plans that are `Recordable`, become
    graphs of CANN's; they are carried out as they come, and recorded once the block is left, when everything that may
    not happen in a capture has happened. A graph whose plans got a batch that it can't serve is left out of that
    replay: its runs are made again.

    made_again: why runs of the last replay were made again, one reason for each; empty where all was replayed by CANN.
    """

    repeats = False  # what a run needs in a graph of CANN's has to have happened before

    def _begin(self) -> None:
        self._pieces: list[Call | RecordedRuns] = []
        self.made_again: tuple[Reason, ...] = ()

    def _end(self) -> None:
        if self.broken:
            return
        from opsocket_ascend import graph_tasks

        self._can_wait = graph_tasks.can_wait()
        together: list[Call] = []
        for call in self.calls:
            if self._why_not(call.plan) is None:
                together.append(call)
                continue
            self._record(together)
            together = []
            self._pieces.append(call)
        self._record(together)

    def _record(self, calls: list[Call]) -> None:
        from opsocket_ascend.recorded import RecordedRuns

        if calls:
            self._pieces.append(RecordedRuns(self.session, calls, self._again))

    def _replay(self) -> None:
        found: list[Reason] = []
        for piece in self._pieces:
            runs = [piece] if isinstance(piece, Call) else piece.calls
            reason = self._why_again(piece)
            if reason is None and not isinstance(piece, Call):
                piece.replay()
                continue
            for call in runs:
                self._again(call)
            found += [reason] * len(runs) if reason is not None else []
        self.made_again = tuple(found)

    def _why_again(self, piece: Call | RecordedRuns) -> Reason | None:
        if self.session.observer is not None:
            return _OBSERVED
        return self._why_not(piece.plan) if isinstance(piece, Call) else piece.misfit()

    def _why_not(self, plan: Plan) -> Reason | None:
        """Why a plan's runs can't be recorded, whatever its batch."""
        soc = soc_of(self.session.device.arch)
        if soc is not None and not soc.has_graphs:
            return Reason("chip", "device.arch", soc.name, "a chip of which updates of a graph's tasks are documented")
        if isinstance(plan, Recordable) and plan.tasks and not self._can_wait:
            return Reason("cann", "aclrtValueWait", "missing", "a CANN whose graphs wait for what is recorded later")
        if plan.batch_type is None or isinstance(plan, Recordable):
            return None
        name = f"{plan.provider}: {plan.request.op}"
        return Reason("capture", name, "launches that depend on the batch", "fixed shapes")

    def _copy(self, target: Any, source: Any) -> None:
        target.copy_(source)


_OBSERVED: Final = Reason("observed", "session.observer", "one", "None: an observer is shown every run")
