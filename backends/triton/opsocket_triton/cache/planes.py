"""Planes of a cache as kernels take them."""

from __future__ import annotations

from typing import Final

import torch

TILE: Final = 2048
"""Elements that a program holds: 16 for each lane of four warps of 32."""


def as_bytes(plane: torch.Tensor) -> torch.Tensor:
    """An f8 plane as uint8: kernels read and write its codes as bits; any other plane as it is."""
    return plane.view(torch.uint8) if plane.dtype.is_floating_point and plane.element_size() == 1 else plane
