"""A batch's arrays where commands find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class BatchArrays:
    """Host arrays of these types, copied to where the last batch's are as long as their shapes are the same.

    A step mostly has the shapes of the step before, and to ask NumPy for an address costs ten times as much as to write
    a few numbers.
    """

    def __init__(self, *dtypes: Any) -> None:
        self._dtypes = dtypes
        self._shapes: list[Any] | None = None
        self._arrays: list[np.ndarray | None] = []

    def take(self, arrays: Sequence[np.ndarray | None]) -> list[int | None] | None:
        """The addresses of all, None for an array that is None. Or None alone: they are where they were."""
        shapes = [None if array is None else array.shape for array in arrays]
        if shapes == self._shapes:
            for kept, array in zip(self._arrays, arrays):  # noqa: B905  (of one length)
                if kept is not None:
                    kept[...] = array
            return None
        self._arrays = [
            None if array is None else np.array(array, dtype, order="C")
            for array, dtype in zip(arrays, self._dtypes, strict=True)
        ]
        self._shapes = shapes
        return [None if array is None else array.ctypes.data for array in self._arrays]
