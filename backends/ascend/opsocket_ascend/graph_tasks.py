"""Calls inside one of CANN's graphs whose arguments on the host change from replay to replay: task groups.

A graph keeps a call with its host lists. So attention, which takes lengths as such, is kept in a task group of its own,
behind an external event that it waits for and resets: before each replay the call is made again with the lists of now,
on a stream for updates, which then records the event. A replay without that would wait forever.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
Issue = Callable[[str, tuple[torch.Tensor, ...], dict[str, Any]], Pair]
"""Makes a call of torch.ops.npu: its name, its tensors by position, everything else by name."""

Lengths = Callable[[], tuple[list[int], list[int]]]
"""The host lists of a call, as a plan's batch has them now: ends of queries, numbers of keys."""

_LENGTHS: Final = "actual_seq_"
"""How the parameters begin that take these lists, in their order."""


def at_once(name: str, tensors: tuple[torch.Tensor, ...], rest: dict[str, Any]) -> Pair:
    """The call as it is."""
    out, lse = getattr(torch.ops.npu, name)(*tensors, **rest)
    return out, lse


@dataclass(frozen=True, eq=False)
class _Task:
    """rest: as it was captured, but for the lists, which are those that it was last given."""

    call: Callable[..., Any]
    tensors: tuple[torch.Tensor, ...]
    rest: dict[str, Any]
    lengths: Lengths
    handle: Any
    event: Any


def can_wait() -> bool:
    """Whether a graph waits for an external event that is recorded later. torch_npu makes one before that only where
    CANN has aclrtValueWait; else it leaves the wait out without a word."""
    return bool(torch.npu.ExternalEvent().npu_event)


class Tasks:
    """Of one graph, `most` at most, updated on a stream of the session's. All of them share the largest of their
    workspaces: they run one after the other."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream = stream
        # torch_npu writes to a new event's memory and waits for that, which a capture forbids.
        self._events = [torch.npu.ExternalEvent() for _ in range(most)]
        self._tasks: list[_Task] = []
        self._workspace: torch.Tensor | None = None
        self._replayed: Any = None

    def recorder(self, lengths: Lengths) -> Issue:
        """Makes a call of attention on the stream that is being captured."""

        def issue(name: str, tensors: tuple[torch.Tensor, ...], rest: dict[str, Any]) -> Pair:
            return self._record(name, tensors, rest, lengths)

        return issue

    def _record(self, name: str, tensors: tuple[torch.Tensor, ...], rest: dict[str, Any], lengths: Lengths) -> Pair:
        stream = torch.npu.current_stream()
        event = self._events.pop()
        event.wait(stream)
        event.reset(stream)
        workspace = getattr(torch.ops.npu, f"_{name}_get_max_workspace")(*tensors, **rest)
        if self._workspace is None or len(workspace) > len(self._workspace):
            self._workspace = workspace
        infer = getattr(torch.ops.npu, f"_{name}_infer_output")
        taken = {argument.name for argument in infer.default._schema.arguments}
        out, lse = infer(tensors[0], tensors[2], **{key: value for key, value in rest.items() if key in taken})
        rest = {**rest, "workspace": self._workspace, "out": [out, lse]}
        call = getattr(torch.ops.npu, name).out
        torch.npu.graph_task_group_begin(stream)
        call(*tensors, **rest)
        handle = torch.npu.graph_task_group_end(stream)
        self._tasks.append(_Task(call, tensors, rest, lengths, handle, event))
        return out, lse

    def update(self) -> None:
        """Before each replay: the lists of now into the graph, and the events that it waits for."""
        if self._replayed is not None:
            self._stream.wait_event(self._replayed)
        with torch.npu.stream(self._stream):
            for task in self._tasks:
                names = (name for name in task.rest if name.startswith(_LENGTHS))
                lengths = dict(zip(names, task.lengths(), strict=True))
                if any(task.rest[name] != told for name, told in lengths.items()):
                    self._renew(task, lengths)
                task.event.record(self._stream)

    def _renew(self, task: _Task, lengths: dict[str, list[int]]) -> None:
        torch.npu.graph_task_update_begin(self._stream, task.handle)
        try:
            task.call(*task.tensors, **{**task.rest, **lengths})
        except BaseException:
            # An update that is left open is in the way of every other graph's. Of one without its call the end says no.
            with suppress(RuntimeError):
                torch.npu.graph_task_update_end(self._stream)
            raise
        torch.npu.graph_task_update_end(self._stream)
        task.rest.update(lengths)

    def replayed(self) -> None:
        """After each replay, on its stream: the next update comes after it."""
        if self._tasks:
            self._replayed = torch.npu.Event()
            self._replayed.record()
