"""Products with the vendor's operators: 16-bit matrices, and W8A8."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from opsocket.operators import MatmulPlan, PackedWeight, QuantizeActivationPlan, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_ascend.torch_npu_provider import strict
from opsocket_ascend.torch_provider import matmul as general


class NpuQuantizeActivation(QuantizeActivationPlan):
    """By `npu_dynamic_quant`."""

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(x):
            return torch.empty_like(x, dtype=torch.int8), x.new_empty(0, dtype=torch.float32)
        return strict.dynamic_quant(x.contiguous())


class NpuMatmul(MatmulPlan):
    """x W^T of 16-bit matrices. Reads the layout of provider torch, whose embedding has the same table.

    A bias, in f32, has to be added before the sum is rounded: `npu_grouped_matmul` does that, of one group.
    """

    weight_layouts = ("dense",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return general.prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return general.widened(packed, slice(None))

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        if not len(x):
            product = x.new_empty(0, self.spec.n)
        elif bias is None:
            product = x @ packed.content.t()
        else:
            end = torch.full((1,), len(x), dtype=torch.int64, device=x.device)
            product = strict.grouped_matmul(x.contiguous(), [packed.content.t()], end, x.dtype, bias=[bias])
        return product if out is None else out.copy_(product)


class NpuMatmulW8A8(MatmulPlan):
    """`npu_dynamic_quant` of each row, then `npu_quant_matmul` with both scales and the bias in f32, rounded once."""

    weight_layouts = ("codes",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return general.prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return general.widened(packed, slice(None))

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        spec, content = self.spec, packed.content
        dtype = TORCH_DTYPES[spec.out_dtype]
        if not len(x):
            product = x.new_empty(0, spec.n, dtype=dtype)
        else:
            codes, per_token = strict.dynamic_quant(x.contiguous())
            scale = content.scale.view(-1)
            product = strict.quant_matmul(codes, content.codes.t(), scale, per_token, bias, dtype)
        return product if out is None else out.copy_(product)
