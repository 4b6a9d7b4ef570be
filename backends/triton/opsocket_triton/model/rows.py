"""How row-wise kernels cut their work."""

from __future__ import annotations

from typing import Final

import torch

TILE: Final = 2048
"""Elements that a program of four warps holds, 16 for each lane of a warp of 32."""


def like(x: torch.Tensor) -> torch.Tensor:
    """A dense output of the shape and dtype of x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
