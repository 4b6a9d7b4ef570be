"""The shared library of native kernels: found, loaded and set to a level of instructions. Imports no framework."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsocket.operators import ContractError, ResourceError
from opsocket_cpu.native.border import border_of
from opsocket_cpu.native.command import Command, workspace_of

if TYPE_CHECKING:
    import numpy as np

PATH = Path(__file__).with_name("libopsocket_cpu.so")
REASON = PATH.with_suffix(".reason")
"""Written by the build where it could not make the library: what was in the way."""

SOURCES = Path(__file__).parents[2] / "native" / "src"
"""What the library is made of, in a checkout. A wheel brings the library that belongs to its modules."""

LEVEL_VARIABLE = "OPSOCKET_CPU_ISA"


@dataclass(frozen=True)
class Level:
    """A level of instructions that the kernels were compiled for, and whether this processor runs it."""

    name: str
    runs_here: bool


class Library:
    """The library, loaded, at one level of instructions for the whole process."""

    def __init__(self, path: Path) -> None:
        dll = ctypes.CDLL(str(path))
        dll.opsocket_use_level.restype = ctypes.c_char_p
        dll.opsocket_level_name.restype = ctypes.c_char_p
        dll.opsocket_command_size.restype = ctypes.c_int64
        dll.opsocket_run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32]
        dll.opsocket_run_one.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        dll.opsocket_pack_codes.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_int64,) * 3]
        dll.opsocket_pack_floats.argtypes = [
            *(ctypes.c_void_p,) * 2,
            *(ctypes.c_int64,) * 2,
            ctypes.c_int32,
            *(ctypes.c_int64,) * 2,
        ]
        dll.opsocket_pack_codes.restype = dll.opsocket_pack_floats.restype = None
        self._dll = dll
        self._run, self._run_one = dll.opsocket_run, dll.opsocket_run_one
        self.level = self.use_level(os.environ.get(LEVEL_VARIABLE, ""))

    def levels(self) -> list[Level]:
        """Best first."""
        dll = self._dll
        return [
            Level(dll.opsocket_level_name(i).decode(), bool(dll.opsocket_level_runs_here(i)))
            for i in range(dll.opsocket_level_count())
        ]

    def use_level(self, name: str) -> str:
        """Take the level of that name, the best for ""; ContractError where it can't be had."""
        level = self._dll.opsocket_use_level(name.encode())
        if level is None:
            have = [level.name for level in self.levels() if level.runs_here]
            raise ContractError(LEVEL_VARIABLE, f"one of {have}, which this processor has, or nothing", repr(name))
        self.level = level.decode()
        return self.level

    def command_size(self, op: int) -> int:
        """Bytes of an operator's command as the library was compiled; 0 where it has no such kernel."""
        size: int = self._dll.opsocket_command_size(op)
        return size

    def pack_codes(self, panels: ctypes.Structure, codes: np.ndarray, first: int) -> None:
        """Rows of codes, u8 [rows, columns], from row `first` on into a weight of `Panels`: `src/pack.h`."""
        rows, columns = codes.shape
        self._dll.opsocket_pack_codes(ctypes.addressof(panels), codes.ctypes.data, columns, first, rows)

    def pack_floats(self, panels: np.ndarray, floats: np.ndarray, pairs: bool, first: int) -> None:
        """Rows of floats, [rows, k], from row `first` on into panels of floats: `src/pack.h`."""
        rows, k = floats.shape
        self._dll.opsocket_pack_floats(panels.ctypes.data, floats.ctypes.data, k, floats.itemsize, pairs, first, rows)

    def run_one(self, command: Command | bytes, threads: int) -> None:
        where = command if isinstance(command, bytes) else ctypes.addressof(command)
        if status := self._run_one(where, threads):
            raise failure(status, workspace_of(command))

    def run(self, commands: CommandArray, threads: int) -> None:
        if status := self._run(commands.address, commands.count, threads):
            raise failure(status, commands.workspace)


def failure(status: int, workspace: int) -> Exception:
    """What a run that did nothing says."""
    if status == 1:
        return ResourceError("bytes of workspace, or a thread", workspace, 0)
    return ContractError(
        str(PATH), "a library built from these sources: run `make native`", "one that lacks an operator"
    )


class CommandArray:
    """Commands as the library takes them: an array of pointers, to one place where one command occurs several times.
    Keeps the commands alive."""

    def __init__(self, commands: Sequence[Command | bytes]) -> None:
        self._commands = {
            id(command): ctypes.create_string_buffer(command, len(command)) if isinstance(command, bytes) else command
            for command in {id(command): command for command in commands}.values()
        }
        addresses = {key: ctypes.addressof(command) for key, command in self._commands.items()}
        self._addresses = [addresses[id(command)] for command in commands]
        self._pointers = (ctypes.c_void_p * len(commands))(*self._addresses)
        self.address = ctypes.addressof(self._pointers)
        self.count = len(commands)
        self.workspace = max(map(workspace_of, commands), default=0)

    def field(self, command: int, descriptor: Any) -> ctypes.c_int64:
        """An i64 field of one command, in place."""
        return ctypes.c_int64.from_address(self._addresses[command] + descriptor.offset)


@cache
def library() -> Library | None:
    """The library, None where there is none: `absence` says why."""
    return Library(PATH) if absence() is None else None


@cache
def absence() -> str | None:
    """Why there are no native kernels here; None where there are."""
    if not PATH.exists():
        return REASON.read_text().strip() if REASON.exists() else f"{PATH.name} was not built"
    try:
        dll = ctypes.CDLL(str(PATH))
    except OSError as error:
        return f"{PATH.name} can't be loaded: {error}"
    border = getattr(dll, "opsocket_border", None)
    if border is None or (SOURCES.is_dir() and border() != border_of(SOURCES)):
        return f"{PATH.name} is of other sources than what calls it: run `make native`"
    return None
