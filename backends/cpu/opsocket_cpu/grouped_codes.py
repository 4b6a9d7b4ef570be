"""Weights as other libraries want them: symmetric codes with one scale per group, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opsocket.operators import MatmulSpec, Reason, Request
from opsocket.quantization import get_format

if TYPE_CHECKING:
    import torch

GROUPS = (16, 32, 64, 128, 256)


def refusals(request: Request, activations: Mapping[str, tuple[int, ...]]) -> tuple[Reason, ...]:
    """Why a product is none of 4- or 8-bit symmetric codes in groups. activations: kind -> groups of the weight."""
    spec = request.spec
    if not isinstance(spec, MatmulSpec):
        return (Reason("operator", "op", request.op, [MatmulSpec.op]),)
    fmt, reasons = get_format(spec.weight_format), []
    if fmt.code != "signed" or fmt.bits not in (4, 8) or fmt.zero != "none" or fmt.g_idx or fmt.block_k not in GROUPS:
        want = f"4- or 8-bit integers without zero points or minimums, in groups of {list(GROUPS)}"
        reasons.append(Reason("weight_format", "weight_format", fmt.id, want))
    elif fmt.block_k not in activations.get(fmt.activation, ()):
        want = "; ".join(f"activations {kind} with groups of {list(groups)}" for kind, groups in activations.items())
        reasons.append(Reason("activation", "weight_format", fmt.id, want))
    elif spec.k % fmt.block_k:
        reasons.append(Reason("shape", "k", spec.k, f"a multiple of {fmt.block_k}"))
    if spec.numerics.accumulate == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
    return tuple(reasons)


@dataclass(frozen=True, eq=False)
class SymmetricCodes:
    """codes i8 [N, K] in [-2^(bits-1), 2^(bits-1)), scale f32 [N, K / group]."""

    codes: np.ndarray
    scale: np.ndarray
    bits: int
    group: int

    @classmethod
    def of(cls, spec: Any, tensors: Mapping[str, np.ndarray]) -> SymmetricCodes:
        fmt = get_format(spec.weight_format)
        grouped = fmt.group(tensors, spec.n, spec.k)
        return cls(np.ascontiguousarray(grouped.codes), grouped.scale, fmt.bits, fmt.block_k)

    def unsigned(self) -> np.ndarray:
        """u8 [N, K / group, bytes]: code + 2^(bits-1); of 4-bit codes the lower column is in the low nibble."""
        n, k = self.codes.shape
        shifted = (self.codes.astype(np.int16) + (1 << (self.bits - 1))).astype(np.uint8)
        if self.bits == 4:
            shifted = shifted[:, 0::2] | shifted[:, 1::2] << 4
        return np.ascontiguousarray(shifted.reshape(n, k // self.group, -1))

    def dequantize(self) -> torch.Tensor:
        import torch  # not above: providers import this module to say no

        n, k = self.codes.shape
        values = self.codes.reshape(n, -1, self.group).astype(np.float32) * self.scale[:, :, None]
        return torch.from_numpy(values.reshape(n, k))
