"""A product per expert by `npu_grouped_matmul`: rows sorted by expert in one array, a weight for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from opsocket.operators import GroupedMatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_ascend.torch_npu_provider import strict, tiles, weight_only
from opsocket_ascend.torch_provider import matmul as general


class NpuGroupedMatmul(GroupedMatmulPlan):
    """16-bit weights, in tiles where the chip's operator reads them; those of codes, with activations as they are or in
    int8, are subclasses.

    The operator wants its last group to end at x's last row. So the last expert gets the rows of nobody as well, and
    what it makes of them is not kept.
    """

    weight_layouts = (tiles.LAYOUT, "dense")

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return tiles.packed("npu_grouped_matmul", session, general.prepare(session, request, tensors))

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return general.widened(tiles.unpacked(packed), slice(None))

    def _run(
        self,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        expert_offsets: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        if not len(x):
            return x.new_empty(0, self.spec.n, dtype=TORCH_DTYPES[self.spec.out_dtype]) if out is None else out
        ends = expert_offsets[1:].clone()
        ends[-1] = len(x)
        biases = None if bias is None else list(bias.unbind(0))
        y = self._product(x.contiguous(), packed, ends, biases)
        if out is None:
            return y
        kept = torch.arange(len(x), device=x.device) < expert_offsets[-1]
        return out.copy_(torch.where(kept.unsqueeze(1), y, out))

    def _product(
        self, x: torch.Tensor, packed: Sequence[PackedWeight], ends: torch.Tensor, biases: list[torch.Tensor] | None
    ) -> torch.Tensor:
        return strict.grouped_matmul(x, [tiles.by_column(weight) for weight in packed], ends, x.dtype, bias=biases)


class NpuGroupedMatmulW8A8(NpuGroupedMatmul):
    """`npu_dynamic_quant` of each row, and both scales in f32 in the product. Of int8 the operator reads tiles only
    where all experts are one array."""

    weight_layouts = ("codes",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return general.prepare(session, request, tensors)

    def _product(
        self, x: torch.Tensor, packed: Sequence[PackedWeight], ends: torch.Tensor, biases: list[torch.Tensor] | None
    ) -> torch.Tensor:
        codes, per_token = strict.dynamic_quant(x)
        weights = [weight.content for weight in packed]
        return strict.grouped_matmul(
            codes,
            [weight.codes.t() for weight in weights],
            ends,
            x.dtype,
            scale=[weight.scale.view(-1) for weight in weights],
            per_token=per_token,
        )


class NpuGroupedMatmulWeightOnly(NpuGroupedMatmul):
    """int4 codes with a scale and an offset of x's type per group, int8 codes with these per column. A subclass for
    each type of x."""

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return weight_only.prepare(session, request, tensors, with_offset=True)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return weight_only.dequantized(session, packed)

    def _product(
        self, x: torch.Tensor, packed: Sequence[PackedWeight], ends: torch.Tensor, biases: list[torch.Tensor] | None
    ) -> torch.Tensor:
        weights = [weight.content for weight in packed]
        return strict.grouped_matmul(
            x,
            [weight.codes for weight in weights],
            ends,
            x.dtype,
            bias=biases,
            group_scale=[weight.scale for weight in weights],
            group_offset=[weight.offset for weight in weights],
        )


class NpuGroupedMatmulWeightOnlyF16(NpuGroupedMatmulWeightOnly):
    weight_layouts = (weight_only.LAYOUTS["f16"],)


class NpuGroupedMatmulWeightOnlyBF16(NpuGroupedMatmulWeightOnly):
    weight_layouts = (weight_only.LAYOUTS["bf16"],)
