"""Matrix products with weights in any format, widened to f32 (f64 for int8 activations) a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from opsocket.operators import GroupedMatmulPlan, MatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket.quantization import get_format
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_cpu.torch_provider import weights
from opsocket_cpu.torch_provider.activation import int8_product, quantize_rows, rounded_to_int8


def product(x: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """f32 [M, N]: x [M, K] in any float type times the weight's transpose, summed in f32; of int8 activations in int32
    where the weight has one scale per row, else in f64, where products of codes and scales and their sums are exact."""
    content: weights.Weight = packed.content
    activation = get_format(packed.weight_format).activation
    if activation != "none":
        assert isinstance(content, weights.CodedWeight)
        if activation == "i8_token" and content.is_integer_by_row:
            codes, scale = quantize_rows(x)
            return int8_product(codes, content.codes).float().mul_(scale.unsqueeze(1)).mul_(content.scale.float().t())
    x = x.float()
    if content.permutation is not None:
        x = x.index_select(1, content.permutation)
    if activation != "none":
        x = rounded_to_int8(x, ACTIVATION_GROUP if activation == "i8_g32" else packed.k)
    y, step = torch.empty(len(x), packed.n), content.tile_rows()
    buffer = weights.tile_buffer(content, packed.k, x.dtype)
    for start in range(0, packed.n, step):
        rows = slice(start, start + step)
        tile = content.widen(rows, buffer).t()
        if x.dtype == torch.float32:
            torch.mm(x, tile, out=y[:, rows])
        else:
            y[:, rows] = torch.mm(x, tile)
    return y


class TorchMatmul(MatmulPlan):
    """x and the weight meet in f32; bias is added there, and the result rounded once."""

    weight_layouts = weights.LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return weights.prepare(session, request.spec, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return weights.dequantize(packed)

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        y = product(x, packed)
        if bias is not None:
            y += bias
        return y.to(TORCH_DTYPES[self.spec.out_dtype]) if out is None else out.copy_(y)


class TorchGroupedMatmul(GroupedMatmulPlan):
    """One product for each expert that has rows."""

    weight_layouts = weights.LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return weights.prepare(session, request.spec, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return weights.dequantize(packed)

    def _run(
        self,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        expert_offsets: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(len(x), self.spec.n, dtype=TORCH_DTYPES[self.spec.out_dtype])
        offsets = expert_offsets.tolist()
        for expert, weight in enumerate(packed):
            rows = slice(offsets[expert], offsets[expert + 1])
            if rows.start < rows.stop:
                y = product(x[rows], weight)
                out[rows] = y if bias is None else y.add_(bias[expert])
        return out
