"""What a batch becomes on the device, at an address that stays as long as batches keep the request's bounds.

An array that a batch has no room in moves: a graph that has recorded it is then not replayed (`graph_form`). Lengths,
which the vendor's attention takes as lists on the host, are no arrays: `graph_tasks` has them renewed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from opsocket.operators import Array, Session


class DeviceArray:
    """Elements of one dtype, of which each batch writes the first. room: how many there are at once."""

    def __init__(self, session: Session, dtype: str, room: int = 0) -> None:
        self._session, self._dtype = session, dtype
        self._elements: Array = session.empty((max(room, 1),), dtype)

    @property
    def address(self) -> int:
        """Where the elements are."""
        address: int = self._elements.data_ptr()
        return address

    def write(self, values: np.ndarray) -> Array:
        """The values on the device, an array of their shape; at the address of the batch before if there is room."""
        if values.size > len(self._elements):
            self._elements = self._session.empty((max(values.size, 2 * len(self._elements)),), self._dtype)
        self._session.write(self._elements, np.ascontiguousarray(values).reshape(-1))
        return self.take(values.shape)

    def take(self, shape: Sequence[int]) -> Array:
        """The first elements, under a shape."""
        return self._elements[: prod(shape)].view(tuple(shape))
