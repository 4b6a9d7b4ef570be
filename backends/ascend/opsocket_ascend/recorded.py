"""Runs in a graph of CANN's, which one call replays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch

from opsocket.operators import BackendError, Call, Reason
from opsocket_ascend.graph import Recordable
from opsocket_ascend.graph_tasks import Tasks


@dataclass(frozen=True)
class GraphRoom:
    """What a session's graphs share, since they are replayed one after the other: streams, and the memory of temporary
    arrays, which torch_npu knows by any living graph that has some. recorded: those that live."""

    capture_stream: Any
    update_stream: Any
    recorded: WeakSet[RecordedRuns]

    @property
    def pool(self) -> Any:
        """None: a new one."""
        return next((runs.graph.pool() for runs in self.recorded), None)


def _room(session: Any) -> GraphRoom:
    if session.graph_room is None:
        streams = (torch.npu.Stream(session.torch_device) for _ in range(2))
        session.graph_room = GraphRoom(*streams, WeakSet())
    room: GraphRoom = session.graph_room
    return room


class RecordedRuns:
    """calls: neighbours, which have run before. graph: theirs. again: makes one of them once more, here while a stream
    is captured.

    Error modes are CANN's strictest: what would wait in a capture, on whatever stream, ends it with an error.
    """

    def __init__(self, session: Any, calls: Sequence[Call], again: Callable[[Call], None]) -> None:
        self.calls = calls
        self._session = session
        plans = dict.fromkeys(call.plan for call in calls if isinstance(call.plan, Recordable))
        self._forms: dict[Any, Hashable] = {plan: plan.graph_form() for plan in plans}
        room = _room(session)
        self._tasks = Tasks(
            room.update_stream, sum(call.plan.tasks for call in calls if isinstance(call.plan, Recordable))
        )
        self.graph = torch.npu.NPUGraph()
        try:
            self._record(room, again)
        except RuntimeError as error:
            raise BackendError("capture", str(session.device), error) from error
        room.recorded.add(self)

    def _record(self, room: GraphRoom, again: Callable[[Call], None]) -> None:
        session = self._session
        torch.npu.synchronize(session.torch_device)
        with torch.npu.stream(room.capture_stream):
            self.graph.capture_begin(pool=room.pool)
            session.tasks = self._tasks
            try:
                for call in self.calls:
                    again(call)
            except BaseException:
                # The capture is invalid, and says so once more: the first error is the one that tells.
                with suppress(RuntimeError):
                    self.graph.capture_end()
                raise
            finally:
                session.tasks = None
            self.graph.capture_end()

    def misfit(self) -> Reason | None:
        """Why the graph can't be replayed now: a plan's batch has another form than the one recorded."""
        for plan, form in self._forms.items():
            now = plan.graph_form()
            if now != form:
                return Reason("batch", f"{plan.provider}: {plan.request.op}", now, form)
        return None

    def replay(self) -> None:
        """On the current stream, after the update of what is told by lists."""
        try:
            self._tasks.update()
            self.graph.replay()
            self._tasks.replayed()
        except RuntimeError as error:
            raise BackendError("capture", str(self._session.device), error) from error
