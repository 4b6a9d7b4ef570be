"""Facts about this machine from /proc, /sys and the operating system; no framework is asked."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip

HUGE_BYTES = 4 << 20
"""Memory that is worth huge pages: one of them lies within it wherever it begins."""


def cpu_name() -> str:
    """The processor's marketing name, or its architecture where the system does not tell."""
    for key, value in _cpuinfo():
        if key in ("model name", "Model") and value:
            return value
    return platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Those instruction-set extensions of the first core that matter to matrix kernels, in a fixed order."""
    for key, value in _cpuinfo():
        if key in ("flags", "Features"):
            present = set(value.split())
            return tuple(f for f in _FEATURES if f in present)
    return ()


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_bytes() -> int:
    """Memory of the machine, or of the control group where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return total if limit is None else min(total, limit)


def available_bytes() -> int:
    """Memory that can be taken now without swapping: the kernel's estimate, within the control group's limit."""
    available = total_bytes()
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        available = min(available, max(limit - used + _cgroup_reclaimable(), 0))
    return available


def resident_bytes(address: int, size: int) -> int:
    """How much of a mapping from a page's beginning on lies in memory; 0 where the system does not tell."""
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    tell = getattr(ctypes.CDLL(None), "mincore", None)
    if tell is None or tell(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)):
        return 0
    return min(int(np.count_nonzero(pages & 1)) * mmap.PAGESIZE, size)


def prefer_huge_pages(address: int, size: int) -> None:
    """Ask the kernel to back memory that nothing has touched yet with huge pages, where it has any.

    What streams through many MB then misses the TLB, whose walks take twice as many steps in a virtual machine, once in
    2 MiB rather than in 4 KiB. Advice only: of no effect on what memory holds, or where there is little of it.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or size < HUGE_BYTES:
        return
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), ctypes.c_int(advice))


def _cpuinfo() -> Iterator[tuple[str, str]]:
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def _cgroup(name: str) -> int | None:
    """A number of this process's control group (version 2), None where there is no such limit."""
    text = "".join(_cgroup_lines(name)).strip()
    return int(text) if text.isdigit() else None


def _cgroup_reclaimable() -> int:
    """File pages that count as used and would be dropped on demand, a mapped model file's among them."""
    for line in _cgroup_lines("memory.stat"):
        key, _, value = line.partition(" ")
        if key == "inactive_file":
            return int(value)
    return 0


def _cgroup_lines(name: str) -> list[str]:
    for line in _lines(Path("/proc/self/cgroup")):
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return _lines(Path("/sys/fs/cgroup") / path.lstrip("/") / name)
    return []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
