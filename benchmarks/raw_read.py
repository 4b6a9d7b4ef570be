"""How fast this machine reads memory: the limit of whatever streams. By the native kernels' own read where
they are, else by NumPy."""

from __future__ import annotations

import time

import numpy as np

from opsocket_cpu.native.command import Op, ReadCommand
from opsocket_cpu.native.library import library

READ_BYTES = 640 << 20
"""More than any cache holds."""


class RawReader:
    def __init__(self, threads: int, size: int = READ_BYTES) -> None:
        self._threads, self._library = threads, library()
        # Not zeros, whose pages would all be one.
        self._data = np.arange(size // 8, dtype=np.int64)
        self._sums = np.zeros(threads * 8, np.int64)
        self._command = ReadCommand(Op.READ, 1, 0, self._data.ctypes.data, self._data.nbytes, self._sums.ctypes.data)

    def bytes_per_second(self) -> float:
        start = time.perf_counter()
        if self._library is None:
            self._data.max()
        else:
            self._library.run_one(self._command, self._threads)
        return self._data.nbytes / (time.perf_counter() - start)
