"""Products with the vendor's operators: 16-bit matrices, W8A8, and W4A16 with a scale per group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from opsocket.operators import MatmulPlan, PackedWeight, QuantizeActivationPlan, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES, storage_bytes
from opsocket.quantization import get_format
from opsocket_ascend.torch_npu_provider import strict
from opsocket_ascend.torch_provider import matmul as general

_FLOOR = -8
"""The lowest int4 code."""


class NpuQuantizeActivation(QuantizeActivationPlan):
    """By `npu_dynamic_quant`."""

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(x):
            return torch.empty_like(x, dtype=torch.int8), x.new_empty(0, dtype=torch.float32)
        return strict.dynamic_quant(x.contiguous())


class NpuMatmul(MatmulPlan):
    """x W^T of 16-bit matrices. Reads the layout of provider torch, whose embedding has the same table."""

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
        product = x @ packed.content.t() if len(x) else x.new_empty(0, self.spec.n)
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


@dataclass(frozen=True, eq=False)
class Int4Weight:
    """words i32 [K, N / 8] of int4 codes; scale and offset [K / group, N]: W^T = scale (code + offset)."""

    words: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    permutation: torch.Tensor | None
    group: int


class NpuMatmulW4A16(MatmulPlan):
    """`npu_weight_quant_batchmatmul` over int4 codes, packed by `npu_convert_weight_to_int4pack`.

    A group's codes, its zero point taken away, are moved into -8 to 7, and the operator's offset moves them back.
    """

    weight_layouts = ("npu-int4",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        spec = request.spec
        fmt = get_format(spec.weight_format)  # type: ignore[attr-defined]
        grouped = fmt.group(tensors, spec.n, spec.k)  # type: ignore[attr-defined]
        codes = grouped.codes.reshape(grouped.n, -1, grouped.group_size).astype(np.int32)
        offset = codes.min(-1, keepdims=True) - _FLOOR
        by_column = np.ascontiguousarray((codes - offset).reshape(grouped.n, grouped.k).T)
        words = torch.ops.npu.npu_convert_weight_to_int4pack(session.upload(by_column))
        x_dtype = spec.x_dtype  # type: ignore[attr-defined]
        content = Int4Weight(
            words,
            session.upload(np.ascontiguousarray(grouped.scale.T), x_dtype),
            session.upload(np.ascontiguousarray(offset[..., 0].T.astype(np.float32)), x_dtype),
            None if grouped.input_permutation is None else session.upload(grouped.input_permutation),
            grouped.group_size,
        )
        parts = (content.words, content.scale, content.offset, content.permutation)
        return PackedWeight(fmt.id, grouped.n, grouped.k, "npu-int4", content, storage_bytes(*parts))

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        content: Int4Weight = packed.content
        shifts = session.upload(np.arange(0, 32, 4, dtype=np.int32))
        codes = ((content.words.unsqueeze(-1) >> shifts) & 15).reshape(packed.k, packed.n)
        codes = torch.where(codes > 7, codes - 16, codes).float().view(-1, content.group, packed.n)
        values = (codes + content.offset.float().unsqueeze(1)) * content.scale.float().unsqueeze(1)
        values = values.view(packed.k, packed.n).t().contiguous()
        if content.permutation is None:
            return values
        return torch.empty_like(values).index_copy_(1, content.permutation, values)

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        content: Int4Weight = packed.content
        if content.permutation is not None:
            x = x.index_select(1, content.permutation)
        if len(x):
            product = strict.weight_quant_matmul(
                x.contiguous(), content.words, content.scale, content.offset, content.group
            )
        else:
            product = x.new_empty(0, self.spec.n)
        return product if out is None else out.copy_(product)
