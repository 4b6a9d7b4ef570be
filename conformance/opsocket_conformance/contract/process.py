"""What this process holds. Resident memory alone would hide a leak that fills pages freed earlier, so allocators are
asked too: what the C library's has handed out, and how many objects Python's has."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")
_SMALLEST_OBJECT: Final = 16


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`: ten sizes; uordblks is in use on the heap, hblkhd in maps of its own."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def process_bytes() -> dict[str, int]:
    """Bytes by who counts them, of those that do here. "resident": pages that no file backs (Linux). "heap": in use by
    malloc (glibc 2.33 and later). "objects": at least so much by Python's small objects (CPython)."""
    counted: dict[str, int] = {}
    if sys.platform.startswith("linux"):
        resident, shared = (int(word) for word in _STATM.read_text().split()[1:3])
        counted["resident"] = (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    if heap := _heap():
        counted["heap"] = heap()
    if hasattr(sys, "getallocatedblocks"):
        counted["objects"] = _SMALLEST_OBJECT * sys.getallocatedblocks()
    return counted


@cache
def _heap() -> Callable[[], int] | None:
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _Mallinfo2

    def in_use() -> int:
        info = mallinfo2()
        return int(info.uordblks + info.hblkhd)

    return in_use
