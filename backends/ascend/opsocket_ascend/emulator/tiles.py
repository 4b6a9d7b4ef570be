"""FRACTAL_NZ: matrices in tiles of 16 rows, each row of a tile 32 bytes long.

A matrix [..., M, N] lies as [..., N1, M1, 16, C0]: element (m, n) at (n // C0, m // 16, m % 16, n % C0), what is beyond
the matrix being zero. C0 is 32 bytes of the element's type: 16 of f16, 32 of int8; of four-byte elements also 16, where
a format cast is asked for tiles of f16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

FRACTAL_NZ: Final = 29
ROWS: Final = 16
ROW_BYTES: Final = 32


def tiled_shape(shape: Sequence[int], c0: int) -> tuple[int, ...]:
    """Of the storage of a matrix, or of several of one shape."""
    *batch, rows, columns = shape
    return (*batch, -(-columns // c0), -(-rows // ROWS), ROWS, c0)


def to_tiles(values: np.ndarray, c0: int) -> np.ndarray:
    """The storage of values."""
    *batch, columns, rows, _, _ = tiled_shape(values.shape, c0)
    beyond = [(0, 0)] * len(batch) + [(0, rows * ROWS - values.shape[-2]), (0, columns * c0 - values.shape[-1])]
    whole = np.pad(values, beyond).reshape(*batch, rows, ROWS, columns, c0)
    return np.moveaxis(whole, -2, -4)


def from_tiles(storage: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The values of a storage, without what is beyond the matrix."""
    *batch, columns, rows, height, c0 = storage.shape
    whole = np.moveaxis(storage, -4, -2).reshape(*batch, rows * height, columns * c0)
    return whole[..., : shape[-2], : shape[-1]]
