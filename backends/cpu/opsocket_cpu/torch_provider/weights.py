"""Weights as this provider keeps them: compact, and widened to f32 a few rows at a time.

Layouts: "dense", the floats as they came; "codes", integer codes or 8-bit floats with an f32 scale, and perhaps
minimum, per group.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from opsocket.operators import PackedWeight, Session
from opsocket.operators.torch_session import storage_bytes
from opsocket.quantization import GroupedWeight, get_format

LAYOUTS = ("dense", "codes")

_TILE_ELEMENTS = 1 << 20
"""Of a widened tile, 4 MiB of f32: measured, larger is faster up to here, as every tile is a handful of torch calls."""


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """weight [N, K] in f32, f16 or bf16."""

    weight: torch.Tensor
    permutation: torch.Tensor | None = None

    def widen(self, rows: slice | torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """f32 [R, K] of the rows asked for, in `into` where given; of f32 weights a view where it can be."""
        stored = _rows(self.weight, rows)
        if into is None or stored.dtype == torch.float32:
            return stored.float()
        return _shaped(into, stored.shape).copy_(stored)

    def tile_rows(self) -> int:
        """How many rows to widen at a time."""
        n, k = self.weight.shape
        return n if self.weight.dtype == torch.float32 else max(1, _TILE_ELEMENTS // k)

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.weight)


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """W[n, p] = scale[n, g] * code[n, j] - minimum[n, g], g = j // group size, p = permutation[j] (or j).

    codes: i8 [N, K], u8 [N, K] that are 8-bit floats of type `small_float`, or u8 [N, K * bits / 8] with 8 / bits
    fields in a byte, field f of byte j being column f * K * bits / 8 + j, so that each field unpacks to consecutive
    columns. scale, minimum: [N, K / group size], f16 where that is exact, else f32.
    """

    codes: torch.Tensor
    bits: int
    scale: torch.Tensor
    minimum: torch.Tensor | None
    permutation: torch.Tensor | None
    small_float: torch.dtype | None = None

    def widen(self, rows: slice | torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """[R, K] of the rows asked for, columns as stored, f32 or in `into` and its type: scale times code rounded
        once, then less the minimum; in f64 exactly."""
        packed, fields = _rows(self.codes, rows), 8 // self.bits
        values = _shaped(into, (len(packed), fields, packed.shape[1]))
        if fields == 1:
            values[:, 0] = packed if self.small_float is None else packed.view(self.small_float)
        else:
            field_codes = torch.empty_like(packed)
            for field in range(fields):
                torch.bitwise_right_shift(packed, field * self.bits, out=field_codes)
                values[:, field] = field_codes.bitwise_and_((1 << self.bits) - 1)
        groups = values.view(len(packed), self.scale.shape[1], -1)
        groups.mul_(_rows(self.scale, rows).to(values.dtype).unsqueeze(-1))
        if self.minimum is not None:
            groups.sub_(_rows(self.minimum, rows).to(values.dtype).unsqueeze(-1))
        return values.view(len(packed), -1)

    def tile_rows(self) -> int:
        """How many rows to widen at a time."""
        return max(1, _TILE_ELEMENTS // (self.codes.shape[1] * (8 // self.bits)))

    @property
    def is_integer_by_row(self) -> bool:
        """Whether a row is int8 codes times one scale."""
        has_integers = self.bits == 8 and self.small_float is None
        return has_integers and self.scale.shape[1] == 1 and self.minimum is None

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.codes, self.scale, self.minimum, self.permutation)


Weight = DenseWeight | CodedWeight

_own = threading.local()


def tile_buffer(weight: Weight, k: int, dtype: torch.dtype) -> torch.Tensor | None:
    """Room for one tile in f32 or f64, kept by each thread: memory fresh from the system for every tile costs more than
    to widen into it. None for f32 weights, which are read where they are."""
    if isinstance(weight, DenseWeight) and weight.weight.dtype == torch.float32:
        return None
    need = weight.tile_rows() * k
    buffers: dict[torch.dtype, torch.Tensor] = _own.__dict__.setdefault("buffers", {})
    buffer = buffers.get(dtype)
    if buffer is None or buffer.numel() < need:
        buffer = buffers[dtype] = torch.empty(max(need, _TILE_ELEMENTS), dtype=dtype)
    return buffer


def _shaped(into: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor:
    """The beginning of a buffer under a shape, or a new f32 tensor."""
    return torch.empty(tuple(shape)) if into is None else into[: math.prod(shape)].view(tuple(shape))


def prepare(session: Session, spec: Any, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
    """A weight of `spec.weight_format` in this provider's layout, validated by the format; owns its memory."""
    fmt = get_format(spec.weight_format)
    content: Weight
    if fmt.is_float:
        fmt.validate(tensors, spec.n, spec.k)
        layout, content = "dense", DenseWeight(session.upload(tensors["weight"], fmt.id))
    elif not fmt.has_integer_codes:
        floats = fmt.scale_floats(tensors, spec.n, spec.k)
        codes, scale = torch.from_numpy(floats.codes.copy()), _narrowest(floats.scale)
        layout, content = "codes", CodedWeight(codes, 8, scale, None, None, torch.float8_e4m3fn)
    else:
        layout, content = "codes", _coded(fmt.group(tensors, spec.n, spec.k))
    return PackedWeight(fmt.id, spec.n, spec.k, layout, content, content.nbytes)


def take(packed: PackedWeight, rows: slice | torch.Tensor) -> torch.Tensor:
    """f32 [R, K] of the rows asked for, columns in their original order; of f32 weights a view where it can be."""
    content: Weight = packed.content
    values = content.widen(rows)
    if content.permutation is None:
        return values
    return torch.empty_like(values).index_copy_(1, content.permutation, values)


def dequantize(packed: PackedWeight) -> torch.Tensor:
    """f32 [N, K], a new tensor."""
    values = take(packed, slice(None))
    return values.clone() if isinstance(packed.content, DenseWeight) else values


def _coded(grouped: GroupedWeight) -> CodedWeight:
    codes, minimum = torch.from_numpy(grouped.codes), grouped.minimum
    bits = grouped.bits if grouped.bits in (2, 4) else 8
    if bits < 8:
        # Unsigned fields from the lowest code of each group up; what that takes away joins the minimum, exactly: the
        # product of an f16 scale and a small integer, where the format has no minimum of its own.
        lowest = np.minimum(grouped.codes.reshape(grouped.n, -1, grouped.group_size).min(-1), 0)
        fields = codes.view(*lowest.shape, -1) - torch.from_numpy(lowest).unsqueeze(-1)
        if int(fields.max()) >> bits or (lowest.any() and minimum is not None):
            bits = 8
        else:
            codes = _pack(fields.view(torch.uint8).view(grouped.n, 8 // bits, -1), bits)
            minimum = -grouped.scale * lowest if lowest.any() else minimum
    return CodedWeight(
        codes if bits < 8 else codes.clone(),
        bits,
        _narrowest(grouped.scale),
        None if minimum is None else _narrowest(minimum),
        None if grouped.input_permutation is None else torch.from_numpy(grouped.input_permutation.copy()),
    )


def _pack(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """u8 [N, F, W] of small fields as u8 [N, W], field 0 lowest."""
    packed = fields[:, 0].clone()
    for field in range(1, fields.shape[1]):
        packed |= fields[:, field] << (field * bits)
    return packed


def _narrowest(values: np.ndarray) -> torch.Tensor:
    """f32 values as f16 where that holds every one of them exactly; a copy."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return torch.from_numpy(half if np.array_equal(half, values, equal_nan=True) else values.copy())


def _rows(array: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
    """Rows by slice or by number; unlike indexing, refuses numbers below 0."""
    return array[rows] if isinstance(rows, slice) else array.index_select(0, rows)
