"""Everything with weights: matrix products, expert products, table lookup, and int8 activations.

Weights are widened once, when they are loaded. A chip keeps codes: `QuantFormat.group` has them for every format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opsocket.operators import (
    EmbeddingPlan,
    GroupedMatmulPlan,
    MatmulPlan,
    PackedWeight,
    QuantizeActivationPlan,
    Request,
    Session,
)
from opsocket.quantization import dequantize, get_format
from opsocket_template.arrays import dtype_of, result


@dataclass(frozen=True, eq=False)
class Weight:
    """values [N, K]: f32, or for int8 activations the codes, in f64, whose sums are exact. scale f32[N]: of codes."""

    values: np.ndarray
    scale: np.ndarray | None

    def rows(self, which: np.ndarray | slice) -> np.ndarray:
        """f32 [R, K] of the rows asked for."""
        values = self.values[which].astype(np.float32)
        return values if self.scale is None else values * self.scale[which][:, None]

    def times(self, x: np.ndarray) -> np.ndarray:
        """x W^T [M, N], before the bias."""
        if self.scale is None:
            return x.astype(np.float32) @ self.values.T
        codes, x_scale = quantized(x)
        return codes.astype(np.float64) @ self.values.T * x_scale[:, None] * self.scale


class _Weighted:
    """What the operators with weights share, so that a table used twice is kept once."""

    weight_layouts = ("template-rows",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        spec = request.spec
        weight_format = get_format(spec.weight_format)
        if weight_format.activation == "none":
            weight = Weight(dequantize(weight_format, tensors, spec.n, spec.k), None)
        else:
            grouped = weight_format.group(tensors, spec.n, spec.k)
            weight = Weight(grouped.codes.astype(np.float64), grouped.scale[:, 0].copy())
        return PackedWeight(weight_format.id, spec.n, spec.k, cls.weight_layouts[0], weight, weight.values.nbytes)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> np.ndarray:
        return packed.content.rows(slice(None))


class Matmul(_Weighted, MatmulPlan):
    def _run(self, x: np.ndarray, packed: PackedWeight, bias: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
        y = packed.content.times(x)
        return result(y if bias is None else y + bias, self.spec.out_dtype, out)


class GroupedMatmul(_Weighted, GroupedMatmulPlan):
    """One product for each expert. Rows past the last expert's are padding, and stay as they are."""

    def _run(
        self,
        x: np.ndarray,
        packed: Sequence[PackedWeight],
        expert_offsets: np.ndarray,
        bias: np.ndarray | None,
        out: np.ndarray | None,
    ) -> np.ndarray:
        spec = self.spec
        if out is None:
            out = np.empty((len(x), spec.n), dtype_of(spec.out_dtype))
        for expert, weight in enumerate(packed):
            rows = slice(expert_offsets[expert], expert_offsets[expert + 1])
            y = weight.content.times(x[rows])
            result(y if bias is None else y + bias[expert], spec.out_dtype, out[rows])
        return out


class Embedding(_Weighted, EmbeddingPlan):
    def _run(self, ids: np.ndarray, packed: PackedWeight, out: np.ndarray | None) -> np.ndarray:
        return result(packed.content.rows(ids), self.spec.out_dtype, out)


class QuantizeActivation(QuantizeActivationPlan):
    def _run(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return quantized(x)


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes i8[M, K] and scales f32[M] of x[M, K] by scheme i8_token; a row of zeros has scale 0 and codes 0."""
    wide = x.astype(np.float32)
    scale = np.abs(wide).max(-1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale[:, None] == 0, np.float32(0), wide / scale[:, None])
    return np.rint(codes).clip(-127, 127).astype(np.int8), scale
