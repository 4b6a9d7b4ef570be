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
    """values [N, K]: f32, or for int8 activations in f64, where their products with int8 codes and the sums are exact.

    activation: the format's, which says what x is multiplied as. order i64[K] or None: the columns by group.
    """

    values: np.ndarray
    activation: str = "none"
    order: np.ndarray | None = None

    def rows(self, which: np.ndarray | slice) -> np.ndarray:
        """f32 [R, K] of the rows asked for."""
        return self.values[which].astype(np.float32)

    def times(self, x: np.ndarray) -> np.ndarray:
        """x W^T [M, N], before the bias."""
        if self.activation == "none":
            return x.astype(np.float32) @ self.values.T
        return self._as_int8(x) @ self.values.T

    def _as_int8(self, x: np.ndarray) -> np.ndarray:
        """f64 [M, K]: int8 codes times their scales, one scale per row or per 32 columns of a group's order."""
        order = slice(None) if self.order is None else self.order
        columns = x[:, order]
        codes, scale = quantized(columns.reshape(-1, 32) if self.activation == "i8_g32" else columns)
        result = np.empty(x.shape)
        result[:, order] = (codes * scale[:, None].astype(np.float64)).reshape(x.shape)
        return result


class _Weighted:
    """What the operators with weights share, so that a table used twice is kept once."""

    weight_layouts = ("template-rows",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        spec = request.spec
        weight_format = get_format(spec.weight_format)
        if weight_format.activation == "none":
            weight = Weight(dequantize(weight_format, tensors, spec.n, spec.k))
        else:
            order = weight_format.group(tensors, spec.n, spec.k).input_permutation
            weight = Weight(weight_format.reference(tensors, spec.n, spec.k), weight_format.activation, order)
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
