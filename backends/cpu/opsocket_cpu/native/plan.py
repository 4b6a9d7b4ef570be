"""What all native plans have in common: a run is a command, built once where it is captured and each time where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from opsocket.operators import Call, Plan
from opsocket_cpu.native.command import Command
from opsocket_cpu.native.library import library


class NativePlan(Plan):
    """A plan whose kernel is in the library: named before the operator's plan class, whose `_run` it implements.

    A subclass has two methods, both of which take the arguments of that operator's `_run`:

    - `_outputs(*args)`: what `_run` returns: the arrays that it was given to write, new ones where it was given none;
    - `_command(result, *args)`: the command that computes `result`, best as the bytes that `Command.pack` makes. Its
      arrays, and the batch that it points at, have to outlive it: a captured command is run again.
    """

    _outputs: Callable[..., Any]
    _command: Callable[..., Command | bytes]

    def _setup(self) -> None:
        found = library()
        assert found is not None
        self._library = found
        self._threads = self.session.threads

    def _run(self, *args: Any) -> Any:
        result = self._outputs(*args)
        self._library.run_one(self._command(result, *args), self._threads)
        return result


def commands(calls: Iterable[Call]) -> list[Command | bytes]:
    """The commands of captured runs of native plans, for a list that is replayed."""
    return [call.plan._command(call.result, *call.args) for call in calls]  # type: ignore[attr-defined]


def address(array: torch.Tensor | None) -> int:
    return 0 if array is None else array.data_ptr()
