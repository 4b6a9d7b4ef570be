"""Zeroed memory that the kernel gives page by page, when one is first written: what a cache may need one day takes
neither time nor memory before."""

from __future__ import annotations

import itertools
import mmap
import weakref
from typing import Any

import numpy as np

from opsocket_cpu import host
from opsocket_cpu.arena import HUGE_PAGE_BYTES


class Untouched:
    """Gives such memory, and knows what of it may still be asked of the machine."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[int, int]] = {}  # address and size
        self._numbers = itertools.count()

    def zeros(self, size: int) -> np.ndarray:
        """u8 [size] of zeros from where a huge page may begin. OSError where there is no such range of addresses."""
        private: dict[str, Any] = (
            {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        )
        whole = np.frombuffer(mmap.mmap(-1, size + HUGE_PAGE_BYTES, **private), np.uint8)
        start = -whole.ctypes.data % HUGE_PAGE_BYTES
        taken = whole[start : start + size]
        host.prefer_huge_pages(taken.ctypes.data, size)
        number = next(self._numbers)
        self._live[number] = taken.ctypes.data, size
        weakref.finalize(whole, self._live.pop, number).atexit = False
        return taken

    def size(self) -> int:
        """Bytes of all that is still held."""
        return sum(size for _, size in list(self._live.values()))

    def pending(self) -> int:
        """Those that nothing has touched: no free memory, though the machine counts them so."""
        return sum(size - host.resident_bytes(address, size) for address, size in list(self._live.values()))
