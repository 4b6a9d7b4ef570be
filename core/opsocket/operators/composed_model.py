"""Norm, gated activation, residual add and row selection out of torch operations."""

from __future__ import annotations

import torch

from opsocket.operators.model import (
    AddPlan,
    RMSNormPlan,
    RMSNormSpec,
    SiluMulPlan,
    TakeRowsPlan,
)


def rounded(values: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None) -> torch.Tensor:
    """values in dtype, rounded to nearest even; in `out` where there is one."""
    return values.to(dtype) if out is None else out.copy_(values)


class ComposedRMSNorm(RMSNormPlan):
    """x * (1 / sqrt(mean(x^2) + eps)) * weight, in f32, rounded once."""

    def _run(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor | None,
        out: torch.Tensor | None,
        residual_out: torch.Tensor | None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, RMSNormSpec)
        joined = x if residual is None else torch.add(x, residual, out=residual_out)
        wide = joined.float()
        scale = wide.square().mean(-1, keepdim=True).add_(spec.eps).rsqrt_()
        y = rounded((wide * scale).mul_(weight), x.dtype, out)
        return y if residual is None else (y, joined)


class ComposedSiluMul(SiluMulPlan):
    """gate / (1 + exp(-gate)) * up, in f32, rounded once."""

    def _run(self, gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        y = torch.nn.functional.silu(gate.float()).mul_(up)
        return rounded(y, gate.dtype, out)


class ComposedAdd(AddPlan):
    """a + b, rounded once: the f32 sum of two 16-bit floats rounds as the exact sum does, or torch adds so itself."""

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return torch.add(a, b) if out is None else torch.add(a, b, out=out)


class ComposedTakeRows(TakeRowsPlan):
    """A gather; a row number that is not in x raises on the host and is undefined on a device."""

    def _run(self, x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return torch.index_select(x, 0, rows) if out is None else torch.index_select(x, 0, rows, out=out)
