"""What all native plans have in common: a run is a command, built once where it is captured and each time where not."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final

import torch

from opsocket.operators import Call, Plan
from opsocket_cpu.native.command import Command
from opsocket_cpu.native.library import library
from opsocket_cpu.native.repeat import Fields, repeats


class NativePlan(Plan):
    """A plan whose kernel is in the library: named before the operator's plan class, whose `_run` it implements.

    A subclass has two methods, both of which take the arguments of that operator's `_run`:

    - `_outputs(*args)`: what `_run` returns: the arrays that it was given to write, new ones where it was given none;
    - `_command(result, *args)`: the command that computes `result`, best as the bytes that `Command.pack` makes. Its
      arrays, and the batch that it points at, have to outlive it: a captured command is run again.

    `_fields`: where arrays' addresses stand in the command. Only for operators without a batch, whose `_outputs` looks
    at no content, and whose command is the same, but for these addresses, for all arrays of the same shapes, dtypes and
    strides: such a run is repeated by the library alone.

    `_counted`: the command, where its field `rows` counts the rows of all its arrays that are not weights, so that it
    can be run on fewer: its workspace is then enough for fewer as well.
    """

    _outputs: Callable[..., Any]
    _command: Callable[..., Command | bytes]
    _fields: ClassVar[Fields | None] = None
    _counted: ClassVar[type[Command] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.any_rows = cls.any_rows or cls._counted is not None

    def _setup(self) -> None:
        found = library()
        assert found is not None
        self._library = found
        self._threads = self.session.threads
        self._repeats = None if self._fields is None else repeats(self._fields, self._threads)

    def _run(self, *args: Any) -> Any:
        result = self._outputs(*args)
        command = self._command(result, *args)
        if self.session.rows is not None and self._counted is not None:
            command = _of_rows(command, self._counted, self.session.rows)
        self._library.run_one(command, self._threads)
        # A command of some of the rows is not what these arrays' next run needs.
        if self._repeats is not None and self.session.capturing is None and self.session.rows is None:
            self._repeats.learn(args, result, command)
        return result

    def _repeat(self, args: tuple[Any, ...]) -> Any:
        return None if self._repeats is None else self._repeats.run(args)


def _of_rows(command: Command | bytes, kind: Any, rows: Mapping[int, int]) -> Command | bytes:
    if not isinstance(command, bytes):
        counted: Any = command
        counted.rows = rows.get(counted.rows, counted.rows)
        return command
    changed, at = bytearray(command), kind.rows.offset
    (recorded,) = _ROWS.unpack_from(changed, at)
    _ROWS.pack_into(changed, at, rows.get(recorded, recorded))
    return bytes(changed)


_ROWS: Final = struct.Struct("@q")


def commands(calls: Iterable[Call]) -> list[Command | bytes]:
    """The commands of captured runs of native plans, for a list that is replayed; of the same run the same one."""
    made: dict[Call, Command | bytes] = {}
    found = []
    for call in calls:
        if call not in made:
            made[call] = call.plan._command(call.result, *call.args)  # type: ignore[attr-defined]
        found.append(made[call])
    return found


def address(array: torch.Tensor | None) -> int:
    return 0 if array is None else array.data_ptr()
