"""Device memory that a plan's kernels use between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from opsocket.operators import Plan


class Workspace:
    """Buffers by name, at addresses that stay: a run that needs no more than one before, or than was reserved,
    allocates nothing."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._buffers: dict[str, torch.Tensor] = {}
        self._recorded: list[torch.Tensor] = []

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A dense tensor whose content is undefined; the same memory for the same name."""
        need = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < need:
            if buffer is not None and self._plan._graphs:
                self._recorded.append(buffer)  # a graph's replay writes there
            device = self._plan.session.torch_device  # type: ignore[attr-defined]
            buffer = self._buffers[name] = torch.empty(need, dtype=dtype, device=device)
        return buffer[:need].view(tuple(shape))
