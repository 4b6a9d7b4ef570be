"""The union of attention over disjoint key sets."""

from __future__ import annotations

import math

import torch

from opsocket.operators import MergeStatesPlan, MergeStatesSpec
from opsocket.operators.torch_session import TORCH_DTYPES


class TorchMergeStates(MergeStatesPlan):
    """All parts at once, in f32, with weights exp(lse - max lse); a part of LSE -inf is left out, not zeroed."""

    def _run(
        self, outs: torch.Tensor, lses: torch.Tensor, out: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MergeStatesSpec)
        top = lses.amax(0)
        base = torch.where(top == -math.inf, torch.zeros_like(top), top)
        weights = torch.exp(lses - base)
        total = weights.sum(0)
        parts = outs.float() * weights.unsqueeze(-1)
        merged = torch.where((lses != -math.inf).unsqueeze(-1), parts, torch.zeros_like(parts)).sum(0)
        nothing = total == 0
        merged = merged / torch.where(nothing, torch.ones_like(total), total).unsqueeze(-1)
        lse = torch.where(nothing, torch.full_like(total, -math.inf), total.log() + base)
        return (merged.to(TORCH_DTYPES[spec.out_dtype]) if out is None else out.copy_(merged)), lse
