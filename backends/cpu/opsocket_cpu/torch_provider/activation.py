"""Activations as int8 codes with a scale per row or group, and their exact product with int8 weights."""

from __future__ import annotations

from functools import lru_cache

import torch

from opsocket.operators import QuantizeActivationPlan

_EXACT_COLUMNS = 1024
"""Columns whose products of int8 codes, at most 127 * 128 each, sum exactly in the 24 bits of an f32."""

_TILE_ROWS = 256
"""Rows of a weight widened at a time."""


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """codes i8 [M, K] and scale f32 [M] of x [M, K]: amax / 127, ties to even; a zero row has scale and codes 0."""
    x = x.float()
    scale = x.abs().amax(1) / 127.0
    codes = torch.where(scale.unsqueeze(1) == 0, 0.0, x / scale.unsqueeze(1))
    return codes.round_().clamp_(-127.0, 127.0).nan_to_num_(nan=0.0).to(torch.int8), scale


def rounded_to_int8(x: torch.Tensor, group: int) -> torch.Tensor:
    """f64 [M, K]: x f32 [M, K] as its int8 codes times their scales, exactly; one scale for each `group` columns."""
    codes, scale = quantize_rows(x.reshape(-1, group))
    return codes.double().mul_(scale.unsqueeze(1)).view(x.shape)


def int8_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K] weight^T [K, N] of int8 codes, exactly, as i32 [M, N]."""
    if x.shape[1] > 1 and _int_mm_is_exact():  # of one column it gives what the memory held
        return torch._int_mm(x, weight.t())
    product = torch.zeros(len(x), len(weight), dtype=torch.int32)
    for column in range(0, x.shape[1], _EXACT_COLUMNS):
        columns = slice(column, column + _EXACT_COLUMNS)
        factor = x[:, columns].float()
        for row in range(0, len(weight), _TILE_ROWS):
            rows = slice(row, row + _TILE_ROWS)
            product[:, rows] += torch.mm(factor, weight[rows, columns].float().t()).to(torch.int32)
    return product


@lru_cache(maxsize=1)
def _int_mm_is_exact() -> bool:
    """Whether torch's int8 product holds on this processor: without VNNI it saturates sums of two products at int16."""
    codes = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(codes, codes.t()) == 64 * 127 * 127).all())


class TorchQuantizeActivation(QuantizeActivationPlan):
    """Scheme i8_token."""

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return quantize_rows(x)
