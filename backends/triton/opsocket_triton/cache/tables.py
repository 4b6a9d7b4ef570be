"""What a cache operator's batch becomes on the device: a table of i64 at a stable address, its length in row 0."""

from __future__ import annotations

import numpy as np
import torch

from opsocket.operators import Array, CacheSpec, ResourceError, Session


class DeviceTable:
    """entries i64[capacity + 1, columns]: row 0 begins with how many rows after it are this batch's.

    A launch whose grid is older than the batch reads that number, and nothing beyond it.
    """

    def __init__(self, session: Session, capacity: int, columns: int) -> None:
        self.session, self.capacity = session, capacity
        self.entries: Array = session.empty((capacity + 1, columns), "i64")

    def write(self, *columns: np.ndarray, head: tuple[int, ...] = ()) -> None:
        """This batch's columns, at most `capacity` long. head: what follows the length in row 0."""
        host = np.zeros((len(columns[0]) + 1, len(columns)), np.int64)
        host[0, : 1 + len(head)] = (len(columns[0]), *head)
        for number, column in enumerate(columns):
            host[1:, number] = column
        self.session.write(self.entries, host)


def first_rows(slots: np.ndarray, cache: CacheSpec) -> np.ndarray:
    """The row of each slot's head 0 in a plane (block, head, token); head h lies h * block_size rows after it."""
    blocks, offsets = np.divmod(np.asarray(slots, np.int64), cache.block_size)
    rows: np.ndarray = blocks * (cache.num_kv_heads * cache.block_size) + offsets
    return rows


class Scratch:
    """Bytes on the device that grow until a graph knows their address."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._bytes: torch.Tensor | None = None

    @property
    def room(self) -> int:
        """Bytes that there are."""
        return 0 if self._bytes is None else self._bytes.numel()

    def reserve(self, size: int, is_recorded: bool) -> None:
        """Room for `size` bytes; `ResourceError` where a graph holds the address of fewer."""
        if size <= self.room:
            return
        if is_recorded:
            raise ResourceError("bytes of scratch, whose address a recorded graph holds", size, self.room)
        self._bytes = self._session.empty((max(size, 2 * self.room),), "u8")

    def take(self, start: int, size: int) -> torch.Tensor:
        """Bytes [start, start + size)."""
        assert self._bytes is not None
        return self._bytes[start : start + size]
