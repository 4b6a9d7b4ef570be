"""The union of attention over disjoint key sets."""

from __future__ import annotations

import math

import torch

from opsocket.operators import MergeStatesPlan, MergeStatesSpec
from opsocket.operators.torch_session import TORCH_DTYPES


class TorchMergeStates(MergeStatesPlan):
    """One pass over the parts in f32 with weights exp(lse - max lse); a part of LSE -inf is left out, not zeroed."""

    def _run(
        self, outs: torch.Tensor, lses: torch.Tensor, out: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MergeStatesSpec)
        top = lses.amax(0)
        base = torch.where(top == -math.inf, 0.0, top)
        weights = torch.exp(lses - base)
        total = weights.sum(0)
        merged = torch.zeros(outs.shape[1:])
        for part, weight, lse in zip(outs, weights, lses, strict=True):
            seen = (lse != -math.inf).unsqueeze(-1)
            merged += torch.where(seen, part.float() * weight.unsqueeze(-1), 0.0)
        nothing = total == 0
        merged.div_(torch.where(nothing, 1.0, total).unsqueeze(-1))
        lse = torch.where(nothing, -math.inf, total.log() + base)
        if out is None:
            return merged.to(TORCH_DTYPES[spec.out_dtype]), lse
        out.copy_(merged)
        return out, lse
