"""Memory for many arrays that are read one after the other, step by step: a model's weights."""

from __future__ import annotations

import threading
from typing import Final
from weakref import ref

import numpy as np

from opsocket_cpu.host import prefer_huge_pages

ALIGNMENT: Final = 64
CHUNK_BYTES: Final = 32 << 20
HUGE_PAGE_BYTES: Final = 2 << 20


class Arena:
    """Cuts arrays out of chunks that the kernel may back with huge pages; most weights are too small to fill one alone.

    A chunk goes when the last of its arrays does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: ref[np.ndarray] | None = None  # not of a slice: arrays keep what owns their memory, and no more
        self._used = 0

    def take(self, size: int) -> np.ndarray:
        """u8 [size] whose first byte lies on a multiple of 64; its content is undefined."""
        if size > CHUNK_BYTES // 2:
            memory, start = _chunk(size)
            return memory[start : start + size]
        with self._lock:
            kept = self._memory() if self._memory else None
            if kept is None or self._used + size > kept.size:
                kept, self._used = _chunk(CHUNK_BYTES)
                self._memory = ref(kept)
            taken = kept[self._used : self._used + size]
            self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return taken


def _chunk(size: int) -> tuple[np.ndarray, int]:
    """u8 with room for `size` bytes from where a huge page may begin, and where that is."""
    memory = np.empty(size + HUGE_PAGE_BYTES, np.uint8)
    prefer_huge_pages(memory.ctypes.data, memory.nbytes)
    return memory, -memory.ctypes.data % HUGE_PAGE_BYTES
