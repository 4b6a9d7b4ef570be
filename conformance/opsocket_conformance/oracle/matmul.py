"""Matrix products over dequantized weights, and the pinned activation quantizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsocket_conformance.guard import judge_only
from opsocket_conformance.tolerance import TIE

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@judge_only
def matmul(x: Float64, weight: Float64, bias: Float64 | None = None) -> Float64:
    """x f64[M, K], weight f64[N, K], bias f64[N] -> f64[M, N]."""
    y = x @ weight.T
    return y if bias is None else y + bias


@dataclass(frozen=True, eq=False)
class Activation:
    """Rows quantized to int8. codes f64[M, K]; scale f32[M]; near_tie bool[M, K]: the code may be either neighbour."""

    codes: Float64
    scale: Float32
    near_tie: npt.NDArray[np.bool_]


@judge_only
def quantize_activation(x: Float32) -> Activation:
    """Scheme "i8_token": s = amax / 127 in f32, codes = clamp(round_half_even(x / s), +-127); a zero row gives 0."""
    x = np.asarray(x, np.float32)
    scale = (np.abs(x).max(axis=-1) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(scale[:, None] == 0, np.float32(0), x / scale[:, None]).astype(np.float64)
    near_tie = np.abs(quotient - np.floor(quotient) - 0.5) <= TIE * np.abs(quotient)
    return Activation(np.clip(np.rint(quotient), -127, 127), scale, near_tie)
