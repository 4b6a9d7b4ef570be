"""What a kernel is called with: `src/commands*.h`, mirrored. Each operator's own struct stands beside its plan."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar

DTYPES = {"f32": 0, "f16": 1, "bf16": 2}


class Op(IntEnum):
    """`enum Op` of commands.h, in its order."""

    NONE = 0
    ADD = 1
    SILU_MUL = 2
    RMS_NORM = 3
    ROPE = 4
    TAKE_ROWS = 5
    ARGMAX = 6
    SAMPLE = 7
    QUANTIZE_ACTIVATION = 8
    MERGE_STATES = 9
    MOE_ROUTE = 10
    MOE_SORT = 11
    MOE_COMBINE = 12
    EMBEDDING = 13
    MATMUL = 14
    MATMUL_A8 = 15
    CACHE_WRITE = 16
    CACHE_READ = 17
    CACHE_MOVE = 18
    CACHE_COPY_BLOCKS = 19
    ATTENTION = 20
    READ = 21
    RATE = 22


_HEAD = struct.Struct("@iiq")


class Command(ctypes.Structure):
    """The head of every command. wait: whether every thread must have finished before the next command begins.

    pack: all numbers, in order -> the struct's bytes, which are a command too, and made in a tenth of the time.
    """

    _fields_ = (("op", ctypes.c_int32), ("wait", ctypes.c_int32), ("workspace", ctypes.c_int64))

    op: int
    wait: int
    workspace: int
    pack: ClassVar[Callable[..., bytes]] = _HEAD.pack

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        codes = _codes(cls)
        if None not in codes:
            cls.pack = struct.Struct("@" + "".join(map(str, codes)) + "0q").pack


def _codes(kind: Any) -> list[str | None]:
    """The `struct` codes of a type's numbers, those of structs within it among them; None for an array."""
    if not issubclass(kind, ctypes.Structure):
        code = getattr(kind, "_type_", None)
        return [code if isinstance(code, str) else None]
    fields = [field for base in reversed(kind.__mro__) for _, field in vars(base).get("_fields_", ())]
    return [code for field in fields for code in _codes(field)]


def workspace_of(command: Command | bytes) -> int:
    """Bytes of memory that all threads share while it runs."""
    return _HEAD.unpack_from(command)[2] if isinstance(command, bytes) else command.workspace


class ReadCommand(Command):
    """Reads memory and does nothing with it."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("sums", ctypes.c_void_p))


class RateCommand(Command):
    """Computes in registers. kind: 0 f32, 1 int8, 2 bf16."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("steps", ctypes.c_int64),
        ("operations", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )
