"""What this machine can do at most: how fast it reads memory, and how fast it computes, on some threads."""

from __future__ import annotations

import time

import numpy as np

from opsocket.operators import Limit
from opsocket_cpu.native.command import Op, RateCommand, ReadCommand
from opsocket_cpu.native.library import Library

READ_BYTES = 640 << 20
"""More than any cache holds."""

_KINDS = ("f32", "int8", "bf16")
_SECONDS = 0.15


class Reader:
    """Reads `size` bytes of memory, again and again."""

    def __init__(self, library: Library, threads: int, size: int = READ_BYTES) -> None:
        self._library, self._threads = library, threads
        # Not zeros, whose pages would all be one.
        self._data = np.arange(size // 8, dtype=np.int64)
        self._sums = np.zeros(threads * 8, np.int64)
        self._command = ReadCommand(Op.READ, 1, 0, self._data.ctypes.data, self._data.nbytes, self._sums.ctypes.data)

    def bytes_per_second(self) -> float:
        start = time.perf_counter()
        self._library.run_one(self._command, self._threads)
        return self._data.nbytes / (time.perf_counter() - start)


def operations_per_second(library: Library, kind: str, threads: int) -> float | None:
    """None where the level in force has no such instruction."""
    sums, operations = np.zeros(threads * 16, np.float32), np.zeros(1, np.int64)
    steps = 1 << 16
    while True:
        command = RateCommand(Op.RATE, 1, 0, _KINDS.index(kind), steps, operations.ctypes.data, sums.ctypes.data)
        start = time.perf_counter()
        library.run_one(command, threads)
        seconds = time.perf_counter() - start
        if not operations[0]:
            return None
        if seconds > _SECONDS:
            return float(operations[0]) * steps * threads / seconds
        steps = int(steps * 1.2 * max(2.0, _SECONDS / max(seconds, 1e-6)))


def measure(library: Library, threads: int) -> tuple[Limit, ...]:
    """Each limit on one thread and on all: the best of three, since whatever else runs can only lower it."""
    found = []
    for count in dict.fromkeys((1, threads)):
        reader = Reader(library, count)
        found.append(Limit("read", "bytes", count, max(reader.bytes_per_second() for _ in range(3))))
        for kind in _KINDS:
            rates = [operations_per_second(library, kind, count) for _ in range(3)]
            best = [rate for rate in rates if rate is not None]
            if best:
                found.append(Limit(kind, "operations", count, max(best)))
    return tuple(found)
