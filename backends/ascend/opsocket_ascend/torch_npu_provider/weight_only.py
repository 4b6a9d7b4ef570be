"""16-bit activations times weights in codes with a scale per group or column, by `npu_weight_quant_batchmatmul`.

The operator has scales of the activations' type: those that are of another are rounded, where the request permits it. A
layout for each such type, so that a weight of rounded scales meets no request that does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from opsocket.operators import ContractError, MatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES, storage_bytes
from opsocket.quantization import get_format
from opsocket_ascend.torch_npu_provider import strict

LAYOUTS: Final = {"f16": "npu-codes-f16", "bf16": "npu-codes-bf16"}
"""By the type of scales and activations."""

_LOWEST_INT4: Final = -8


@dataclass(frozen=True, eq=False)
class GroupedCodes:
    """W^T [K, N] = scale (code + offset). codes: i8 [K, N], a view of dense [N, K], as the operator reads it fastest;
    or int4 in words i32 [K, N / 8]. scale [K / group, N], or [N] where group is 0; offset as scale, None for 0."""

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None
    permutation: torch.Tensor | None
    group: int


def prepare(
    session: Session, request: Request, tensors: Mapping[str, np.ndarray], with_offset: bool = False
) -> PackedWeight:
    """Codes of more than 4 bits as int8. Of others, a group's codes, its zero point taken away, are moved into -8 to 7
    and packed by `npu_convert_weight_to_int4pack`; the operator's offset, a whole number, moves them back. with_offset:
    even one of zeros. `ContractError` for a scale that is beyond the range of x's type."""
    spec = request.spec
    fmt = get_format(spec.weight_format)  # type: ignore[attr-defined]
    grouped = fmt.group(tensors, spec.n, spec.k)  # type: ignore[attr-defined]
    x_dtype = spec.x_dtype  # type: ignore[attr-defined]
    group = grouped.group_size if fmt.block_k else 0
    scale = _rounded(grouped.scale.T if group else grouped.scale[:, 0], x_dtype).to(session.torch_device)
    offset = torch.zeros_like(scale) if with_offset else None
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
        scale,
        offset,
        None if grouped.input_permutation is None else session.upload(grouped.input_permutation),
        group,
    )
    parts = (content.codes, content.scale, content.offset, content.permutation)
    return PackedWeight(fmt.id, grouped.n, grouped.k, LAYOUTS[x_dtype], content, storage_bytes(*parts))


def _rounded(scale: np.ndarray, dtype: str) -> torch.Tensor:
    """Scales in f16 or bf16, rounded to nearest even on the host; exact where they are of that type."""
    exact = torch.from_numpy(np.ascontiguousarray(scale))
    rounded = exact.to(TORCH_DTYPES[dtype])
    if bool((exact.isfinite() & ~rounded.isfinite()).any()):
        raise ContractError("tensors", f"scales that {dtype} can hold", float(exact.abs().max()))
    return rounded


def dequantized(session: Session, packed: PackedWeight) -> torch.Tensor:
    """f32 [N, K]."""
    content: GroupedCodes = packed.content
    codes = content.codes
    if codes.dtype == torch.int32:
        shifts = session.upload(np.arange(0, 32, 4, dtype=np.int32))
        codes = ((codes.unsqueeze(-1) >> shifts) & 15).reshape(packed.k, packed.n)
        codes = torch.where(codes > 7, codes - 16, codes)
    values = codes.float().reshape(-1, content.group or packed.k, packed.n)
    scale, offset = (
        None if each is None else each.float().view(-1, 1, packed.n) for each in (content.scale, content.offset)
    )
    if offset is not None:
        values = values + offset
    values = (values * scale).view(packed.k, packed.n).t().contiguous()
    if content.permutation is None:
        return values
    return torch.empty_like(values).index_copy_(1, content.permutation, values)


class NpuMatmulWeightOnly(MatmulPlan):
    """W4A16 and W8A16; a subclass for each type of x."""

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
                x.contiguous(), content.codes, content.scale, content.offset, content.group, bias
            )
        else:
            product = x.new_empty(0, self.spec.n)
        return product if out is None else out.copy_(product)


class NpuMatmulWeightOnlyF16(NpuMatmulWeightOnly):
    weight_layouts = (LAYOUTS["f16"],)


class NpuMatmulWeightOnlyBF16(NpuMatmulWeightOnly):
    weight_layouts = (LAYOUTS["bf16"],)
