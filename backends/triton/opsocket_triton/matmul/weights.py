"""Weights as the kernels read them: "dense" floats, or "fields", codes in fields of 2, 4 or 8 bits: integers, or small
floats that the kernels decode.

Both lie in rows of slabs. A slab is 32 stored elements of a row, floats or bytes: one sector of an NVIDIA GPU's memory
where they are bytes, and the depth of one step of an int8 matrix unit. Byte b of slab s holds 8 / bits codes; field f,
bits [f * bits, (f + 1) * bits), is column (s * 8 / bits + f) * 32 + b. So a field of a run of bytes is a run of
columns: codes need no shuffle on their way to a product, and every field of a slab has one scale where a group is a
multiple of 32 columns.

Scales and minimums lie by group, [groups, N], so that a program's rows read them side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from opsocket.operators import PackedWeight, Request, Session
from opsocket.operators.torch_session import storage_bytes
from opsocket.quantization import GroupedWeight, QuantFormat, ScaledFloats, f32_to_bf16, get_format

LAYOUTS: Final = ("dense", "fields")
SLAB: Final = 32
_E2M1_OF_TWICE: Final = np.array([0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7], np.int8)
_ROWS: Final = 16
"""Scales of a group lie in a multiple of these, so that each group's begin on a multiple of 16 bytes."""


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """weight [N, K] in f32, f16 or bf16; K padded with zeros to whole slabs. addresses: as of `FieldWeight`."""

    weight: torch.Tensor
    addresses: torch.Tensor

    @property
    def stored(self) -> torch.Tensor:
        return self.weight

    @property
    def width(self) -> int:
        """Stored elements of a row, in whole slabs."""
        return self.weight.shape[1]

    @property
    def permutation(self) -> None:
        return None

    def copy(self) -> DenseWeight:
        """Another of the same content, elsewhere."""
        return replace(self, weight=self.weight.clone())

    @property
    def arrays(self) -> tuple[torch.Tensor, ...]:
        """All that lies on the device."""
        return self.weight, self.addresses

    @property
    def nbytes(self) -> int:
        return storage_bytes(*self.arrays)


@dataclass(frozen=True, eq=False)
class FieldWeight:
    """W[n, p] = scale[g, n] * (field[n, j] - offset) - minimum[g, n], g = j // group, p = permutation[j] (or j).

    stored: i8 [N, K] where bits is 8, else u8 [N, K * bits / 8], K padded to whole slabs. offset: or the name of the
    small float that a field is: "f8e4m3fn", u8 [N, K]; "e2m1", of which twice the number meets the scale. group:
    columns that share a scale; 0: a whole row does, and there is no minimum. scale: f16 where the format has it so,
    bf16 where it is a power of two, else f32, [groups, N], N padded to a multiple of 16 and groups to those of all
    slabs. minimum: None, the same, or i8: a zero point, which scale multiplies. permutation: i64 [K] or None.
    addresses: i64 [4], on the device, where stored, scale, minimum and permutation are (0: nowhere).
    """

    stored: torch.Tensor
    bits: int
    offset: int | str
    group: int
    scale: torch.Tensor
    minimum: torch.Tensor | None
    permutation: torch.Tensor | None
    addresses: torch.Tensor

    @property
    def width(self) -> int:
        """Stored elements of a row, in whole slabs."""
        return self.stored.shape[1]

    def copy(self) -> FieldWeight:
        """Another of the same content, elsewhere."""
        minimum = None if self.minimum is None else self.minimum.clone()
        return replace(self, stored=self.stored.clone(), scale=self.scale.clone(), minimum=minimum)

    @property
    def arrays(self) -> tuple[torch.Tensor, ...]:
        """All that lies on the device."""
        every = (self.stored, self.scale, self.minimum, self.permutation, self.addresses)
        return tuple(array for array in every if array is not None)

    @property
    def nbytes(self) -> int:
        return storage_bytes(*self.arrays)


Weight = DenseWeight | FieldWeight


@dataclass(frozen=True)
class Form:
    """What a weight of a format looks like here, whatever it holds: see `FieldWeight`. width: stored elements of a row.
    bits 0: floats. has_minimum: or a zero point."""

    bits: int
    offset: int | str
    group: int
    width: int
    has_minimum: bool


def form_of(fmt: QuantFormat, k: int) -> Form:
    """The form of all weights [n, k] of a format."""
    if fmt.is_float:
        return Form(0, 0, 0, k + -k % SLAB, False)
    bits = next(width for width in (2, 4, 8) if width >= fmt.integer_bits)
    per_byte = 8 // bits
    has_minimum = fmt.zero == "float_min" or (fmt.zero == "int" and bits < 8)
    offset: int | str = 0 if bits == 8 or has_minimum else 1 << bits - 1
    if fmt.code in ("f8e4m3fn", "e2m1"):
        offset = fmt.code
    group = fmt.group_size(k) if has_minimum or fmt.group_size(k) != k else 0
    return Form(bits, offset, group, (k + -k % (SLAB * per_byte)) // per_byte, has_minimum)


def arguments(content: Weight) -> dict[str, Any]:
    """What every kernel takes of a weight, by the names that they have for it. BITS 0: its elements are floats."""
    is_dense = isinstance(content, DenseWeight)
    return {
        "stored": content.stored,
        "w_row": content.stored.stride(0),
        "scale": None if is_dense else content.scale,
        "minimum": None if is_dense else content.minimum,
        "scale_row": 0 if is_dense else content.scale.stride(0),
        "width": content.width,
        "BITS": 0 if is_dense else content.bits,
        "OFFSET": 0 if is_dense else content.offset,
        "GROUP": 0 if is_dense else content.group,
    }


def prepare(session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
    """A weight of the request's format in its layout here, validated by the format; owns its memory."""
    spec: Any = request.spec
    fmt = get_format(spec.weight_format)
    content: Weight
    if fmt.is_float:
        fmt.validate(tensors, spec.n, spec.k)
        rows = np.pad(tensors["weight"], ((0, 0), (0, -spec.k % SLAB)))
        weight = session.upload(rows, fmt.id)
        layout, content = "dense", DenseWeight(weight, _addresses(session, weight, None, None, None))
    elif fmt.has_integer_codes:
        layout, content = "fields", _fields(session, fmt, fmt.group(tensors, spec.n, spec.k))
    else:
        layout, content = "fields", _floats(session, fmt, fmt.scale_floats(tensors, spec.n, spec.k))
    return PackedWeight(fmt.id, spec.n, spec.k, layout, content, content.nbytes)


def _fields(session: Session, fmt: QuantFormat, grouped: GroupedWeight) -> FieldWeight:
    form = form_of(fmt, grouped.k)
    codes, minimum = _narrowed(form, grouped)
    per_byte = 8 // form.bits
    codes = np.pad(codes, ((0, 0), (0, form.width * per_byte - grouped.k)))
    if form.bits < 8:
        shaped = codes.view(np.uint8).reshape(grouped.n, -1, per_byte, SLAB)
        joined = shaped[:, :, 0].copy()
        for field in range(1, per_byte):
            joined |= shaped[:, :, field] << np.uint8(field * form.bits)
        codes = joined.reshape(grouped.n, -1)
    groups = -(-form.width * per_byte // form.group) if form.group else 1
    stored = session.upload(codes)
    scale = _upload_scales(session, fmt, grouped.scale, groups)
    lowest = None if minimum is None else _upload_scales(session, fmt, minimum, groups)
    order = None if grouped.input_permutation is None else session.upload(grouped.input_permutation)
    addresses = _addresses(session, stored, scale, lowest, order)
    return FieldWeight(stored, form.bits, form.offset, form.group, scale, lowest, order, addresses)


def _floats(session: Session, fmt: QuantFormat, floats: ScaledFloats) -> FieldWeight:
    form = form_of(fmt, floats.k)
    stored = session.upload(np.pad(floats.codes, ((0, 0), (0, form.width - floats.k))))
    groups = -(-form.width // form.group) if form.group else 1
    scale = _upload_scales(session, fmt, floats.scale, groups)
    addresses = _addresses(session, stored, scale, None, None)
    return FieldWeight(stored, form.bits, form.offset, form.group, scale, None, None, addresses)


def _addresses(session: Session, *tensors: torch.Tensor | None) -> torch.Tensor:
    addresses: torch.Tensor = session.upload(np.array([0 if t is None else t.data_ptr() for t in tensors], np.int64))
    return addresses


def _narrowed(form: Form, grouped: GroupedWeight) -> tuple[np.ndarray, np.ndarray | None]:
    """codes i8 [N, K] as fields hold them, and minimum f32 or zero point i8 [N, groups]."""
    if form.has_minimum and grouped.minimum is None:
        # A zero point was subtracted: the fields count from the lowest code of each group up.
        lowest = grouped.codes.reshape(grouped.n, -1, grouped.group_size).min(-1)
        return grouped.codes - np.repeat(lowest, grouped.group_size, axis=1), -lowest
    if form.offset == "e2m1":
        return _E2M1_OF_TWICE[np.abs(grouped.codes)] | (grouped.codes < 0).astype(np.int8) << np.int8(3), None
    return grouped.codes + np.int8(form.offset), grouped.minimum


def _by_group(values: np.ndarray, groups: int) -> np.ndarray:
    """[N, groups] as [groups, N], padded with zeros."""
    more = ((0, groups - values.shape[1]), (0, -values.shape[0] % _ROWS))
    return np.ascontiguousarray(np.pad(values.T, more))


def _upload_scales(session: Session, fmt: QuantFormat, values: np.ndarray, groups: int) -> torch.Tensor:
    """Scales, minimums or zero points [N, groups] by group. f32 values are f16 where the format has these so,
    not their factors; powers of two are bf16, which holds each; integers are as they are."""
    uploaded: torch.Tensor
    if fmt.scale_dtype == "e8m0":
        uploaded = session.upload(_by_group(f32_to_bf16(values), groups), "bf16")
    elif fmt.scale_dtype == "f16" and fmt.super_block == 0 and values.dtype == np.float32:
        uploaded = session.upload(_by_group(values.astype(np.float16), groups))
    else:
        uploaded = session.upload(_by_group(values, groups))
    return uploaded
