"""Activations as int8 codes with a scale per row."""

from __future__ import annotations

import torch

from opsocket.operators import QuantizeActivationPlan


class TorchQuantizeActivation(QuantizeActivationPlan):
    """Scheme i8_token: amax / 127, ties to even; a zero row has scale and codes 0."""

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.float()
        scale = x.abs().amax(1) / 127.0
        column = scale.unsqueeze(1)
        codes = torch.where(column == 0, torch.zeros_like(x), x / column)
        return codes.round().clamp(-127.0, 127.0).to(torch.int8), scale
