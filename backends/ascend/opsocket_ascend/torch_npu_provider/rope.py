"""rope by `npu_rotary_mul`."""

from __future__ import annotations

import torch

from opsocket_ascend.torch_npu_provider import strict
from opsocket_ascend.torch_provider.rope import TorchRope


class NpuRope(TorchRope):
    """Angles as provider torch has them; their application in f32, rounded once."""

    def _run(
        self, x: torch.Tensor, positions: torch.Tensor, factors: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if not len(x):
            return out
        angle = self._angles(positions, factors)
        spread = angle.repeat_interleave(2, -1) if self._spec.interleaved else torch.cat([angle, angle], -1)
        turned = self._spec.rotary_dim
        wide = x[..., :turned].float().contiguous()
        y = strict.rotary_mul(wide, spread.cos(), spread.sin(), self._spec.interleaved)
        if out is not x and turned < x.shape[-1]:
            out[..., turned:] = x[..., turned:]
        out[..., :turned] = y.to(x.dtype)
        return out
