"""16-bit activations times weights in codes with a scale per group, by `npu_weight_quant_batchmatmul`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from opsocket.operators import MatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import storage_bytes
from opsocket.quantization import get_format
from opsocket_ascend.torch_npu_provider import strict

LAYOUT: Final = "npu-codes"
_LOWEST_INT4: Final = -8


@dataclass(frozen=True, eq=False)
class GroupedCodes:
    """W^T [K, N] = scale (code + offset). codes: i8 [K, N], a view of dense [N, K], as the operator reads it fastest;
    or int4 in words i32 [K, N / 8]. scale [K / group, N]; offset as scale, None for 0."""

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None
    permutation: torch.Tensor | None
    group: int


def prepare(session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
    """Codes of more than 4 bits as int8. Of others, a group's codes, its zero point taken away, are moved into -8 to 7
    and packed by `npu_convert_weight_to_int4pack`; the operator's offset, a whole number, moves them back."""
    spec = request.spec
    fmt = get_format(spec.weight_format)  # type: ignore[attr-defined]
    grouped = fmt.group(tensors, spec.n, spec.k)  # type: ignore[attr-defined]
    x_dtype = spec.x_dtype  # type: ignore[attr-defined]
    offset = None
    if fmt.bits > 4:
        codes = session.upload(grouped.codes).t()
    else:
        by_group = grouped.codes.reshape(grouped.n, -1, grouped.group_size).astype(np.int32)
        moved = by_group.min(-1, keepdims=True) - _LOWEST_INT4
        by_column = np.ascontiguousarray((by_group - moved).reshape(grouped.n, grouped.k).T)
        codes = torch.ops.npu.npu_convert_weight_to_int4pack(session.upload(by_column))
        offset = session.upload(np.ascontiguousarray(moved[..., 0].T.astype(np.float32)), x_dtype)
    content = GroupedCodes(
        codes,
        session.upload(np.ascontiguousarray(grouped.scale.T), x_dtype),
        offset,
        None if grouped.input_permutation is None else session.upload(grouped.input_permutation),
        grouped.group_size,
    )
    parts = (content.codes, content.scale, content.offset, content.permutation)
    return PackedWeight(fmt.id, grouped.n, grouped.k, LAYOUT, content, storage_bytes(*parts))


def dequantized(session: Session, packed: PackedWeight) -> torch.Tensor:
    """f32 [N, K]."""
    content: GroupedCodes = packed.content
    codes = content.codes
    if codes.dtype == torch.int32:
        shifts = session.upload(np.arange(0, 32, 4, dtype=np.int32))
        codes = ((codes.unsqueeze(-1) >> shifts) & 15).reshape(packed.k, packed.n)
        codes = torch.where(codes > 7, codes - 16, codes)
    values = codes.float().reshape(-1, content.group, packed.n)
    if content.offset is not None:
        values = values + content.offset.float().unsqueeze(1)
    values = (values * content.scale.float().unsqueeze(1)).view(packed.k, packed.n).t().contiguous()
    if content.permutation is None:
        return values
    return torch.empty_like(values).index_copy_(1, content.permutation, values)


class NpuMatmulWeightOnly(MatmulPlan):
    """W4A16 and W8A16. The scales are of x's type, as the format has them: those of f32 would be rounded, and are not
    served."""

    weight_layouts = (LAYOUT,)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return dequantized(session, packed)

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        content: GroupedCodes = packed.content
        if content.permutation is not None:
            x = x.index_select(1, content.permutation)
        if len(x):
            product = strict.weight_quant_matmul(
                x.contiguous(), content.codes, content.scale, content.offset, content.group
            )
        else:
            product = x.new_empty(0, self.spec.n)
        return product if out is None else out.copy_(product)
