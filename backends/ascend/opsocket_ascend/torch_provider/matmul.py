"""Products with weights in every format, and rows of them, in f32: weights are widened as they are needed.

Layouts: "dense", floats as they came, [N, K]; "codes", int8 codes [N, K] with an f32 scale, and perhaps minimum, per
group of columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from opsocket.operators import EmbeddingPlan, GroupedMatmulPlan, MatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES, storage_bytes
from opsocket.quantization import get_format

LAYOUTS = ("dense", "codes")
_TILE_ELEMENTS = 1 << 24
"""Of a weight widened at a time: 64 MiB of f32."""


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """W[n, p] = scale[n, g] * codes[n, j] - minimum[n, g], g = j // group size, p = permutation[j] (or j)."""

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None
    permutation: torch.Tensor | None


def prepare(session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
    """A weight of the spec's format, validated by it."""
    spec = request.spec
    fmt = get_format(spec.weight_format)  # type: ignore[attr-defined]
    n, k = spec.n, spec.k  # type: ignore[attr-defined]
    if fmt.is_float:
        fmt.validate(tensors, n, k)
        dense: torch.Tensor = session.upload(tensors["weight"], fmt.id)
        return PackedWeight(fmt.id, n, k, "dense", dense, storage_bytes(dense))
    grouped = fmt.group(tensors, n, k)
    content = CodedWeight(
        session.upload(grouped.codes),
        session.upload(grouped.scale),
        None if grouped.minimum is None else session.upload(grouped.minimum),
        None if grouped.input_permutation is None else session.upload(grouped.input_permutation),
    )
    parts = (content.codes, content.scale, content.minimum, content.permutation)
    return PackedWeight(fmt.id, n, k, "codes", content, storage_bytes(*parts))


def widened(packed: PackedWeight, rows: slice | torch.Tensor) -> torch.Tensor:
    """f32 [R, K] of the rows asked for, columns as stored."""
    if packed.layout == "dense":
        return _rows(packed.content, rows).float()
    content: CodedWeight = packed.content
    codes, scale = _rows(content.codes, rows), _rows(content.scale, rows)
    groups = codes.view(*scale.shape, -1).float() * scale.unsqueeze(-1)
    if content.minimum is not None:
        groups = groups - _rows(content.minimum, rows).unsqueeze(-1)
    return groups.reshape(codes.shape)


def in_order(packed: PackedWeight, values: torch.Tensor) -> torch.Tensor:
    """Rows of `widened` with their columns in the weight's order."""
    permutation = getattr(packed.content, "permutation", None)
    return values if permutation is None else torch.empty_like(values).index_copy_(1, permutation, values)


def _rows(array: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
    return array[rows] if isinstance(rows, slice) else array.index_select(0, rows)


class TorchMatmul(MatmulPlan):
    """x and W widened to f32, and the product rounded once; W a tile of rows at a time."""

    weight_layouts = LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return in_order(packed, widened(packed, slice(None)))

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        spec = self.spec
        if out is None:
            out = self.session.empty((len(x), spec.n), spec.out_dtype)
        if len(x) == 0:
            return out
        wide = x.float()
        permutation = getattr(packed.content, "permutation", None)
        if permutation is not None:
            wide = wide.index_select(1, permutation)
        step = max(1, _TILE_ELEMENTS // spec.k)
        for start in range(0, spec.n, step):
            rows = slice(start, start + step)
            product = wide @ widened(packed, rows).t()
            if bias is not None:
                product = product + bias[rows]
            out[:, rows] = product.to(TORCH_DTYPES[spec.out_dtype])
        return out


class TorchGroupedMatmul(GroupedMatmulPlan):
    """Every row times every expert's weight, of which the rows of that expert are kept: where these lie only the device
    knows. num_experts times the work that is needed."""

    weight_layouts = LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return in_order(packed, widened(packed, slice(None)))

    def _run(
        self,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        expert_offsets: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        spec = self.spec
        if out is None:
            out = self.session.empty((len(x), spec.n), spec.out_dtype)
        if len(x) == 0:
            return out
        wide, row = x.float(), torch.arange(len(x), device=x.device)
        for expert, weight in enumerate(packed):
            permutation = getattr(weight.content, "permutation", None)
            columns = wide if permutation is None else wide.index_select(1, permutation)
            product = columns @ widened(weight, slice(None)).t()
            if bias is not None:
                product = product + bias[expert]
            mine = (row >= expert_offsets[expert]) & (row < expert_offsets[expert + 1])
            out.copy_(torch.where(mine.unsqueeze(1), product.to(out.dtype), out))
        return out


class TorchEmbedding(EmbeddingPlan):
    """Only the rows asked for are dequantized. Reads the layouts of the matmul: tied tables need one copy."""

    weight_layouts = LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return in_order(packed, widened(packed, slice(None)))

    def _run(self, ids: torch.Tensor, packed: PackedWeight, out: torch.Tensor | None) -> torch.Tensor:
        rows = in_order(packed, widened(packed, ids)).to(TORCH_DTYPES[self.spec.out_dtype])
        return rows if out is None else out.copy_(rows)
