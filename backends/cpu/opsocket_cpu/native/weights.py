"""Weights as the native kernels read them: layout "panels", `src/panel.h` in NumPy.

Packing happens once, at load, from a format's canonical form; nothing of it is on the path of a step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from opsocket.operators import PackedWeight, Request, Session
from opsocket.operators.torch_session import storage_bytes
from opsocket.quantization import GroupedWeight, ScaleCodes, f8e4m3fn_to_f32, get_format
from opsocket.quantization.grouped import IQ4 as IQ4_INTEGERS
from opsocket_cpu.arena import Arena

LAYOUTS = ("panels",)
PANEL = 32
_ARENA = Arena()
_TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


class Panels(ctypes.Structure):
    """`struct Panels`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("zero_offset", ctypes.c_int32),
        ("has_minimum", ctypes.c_int32),
        ("scale_f32", ctypes.c_int32),
        ("code", ctypes.c_int32),
        ("super", ctypes.c_int64),
    )


INTEGERS, E4M3FN, E2M1, IQ4 = range(4)
"""`enum Code`."""

TABLES = {"e2m1": (E2M1, _TWICE_E2M1, 12), "iq4": (IQ4, IQ4_INTEGERS, 128)}
"""Codes of four bits that are looked up, by their name in formats: what they are to kernels, the integers that they
stand for, and what makes these bytes."""

BY_TABLE = 7
"""In place of a number of bits: such codes."""

CODED_SCALES = {(2, True, 16), (4, True, 32), (5, True, 32), (4, False, 16), (6, False, 16), (BY_TABLE, False, 32)}
"""Bits, whether there are minimums, and slabs of weights whose scales stay codes: `is_form` of matmul_a8.cpp."""

MOST_GROUPS = 16
"""Of a super-block: `matmul_a8.h`."""


@dataclass(frozen=True, eq=False)
class CodedPanels:
    """Codes, integers or small floats, with a scale, and perhaps a minimum, per group. data: u8, as `panel.h` has it.
    facts: points at data. k: columns that the codes have; facts.k: with padding. permutation: i64 [k], None: in order.
    """

    data: torch.Tensor
    facts: Panels
    k: int
    permutation: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.data, self.permutation)


@dataclass(frozen=True, eq=False)
class FloatPanels:
    """data: [panels, k, 32] of f32 or f16, bf16 [panels, k / 2, 32, 2] with an odd k padded."""

    data: torch.Tensor
    dtype: str

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.data)


class OverPanels:
    """What plans whose weights are panels have in common; named before the operator's plan class."""

    weight_layouts = LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return prepare(session, request.spec, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return dequantize(packed)


def prepare(session: Session, spec: Any, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
    """A weight of `spec.weight_format` in panels, validated by the format; owns its memory."""
    fmt = get_format(spec.weight_format)
    if fmt.is_float:
        fmt.validate(tensors, spec.n, spec.k)
        floats = FloatPanels(_float_panels(tensors["weight"], fmt.id), fmt.id)
        return PackedWeight(fmt.id, spec.n, spec.k, "panels", floats, floats.nbytes)
    if fmt.has_integer_codes:
        grouped = fmt.group(tensors, spec.n, spec.k)
        unsigned = _by_table(grouped, fmt.code) if fmt.code in TABLES else _unsigned(grouped)
        coded = _packed(unsigned, grouped.n, grouped.k, grouped.group_size, grouped.input_permutation)
    else:
        floats = fmt.scale_floats(tensors, spec.n, spec.k)
        unsigned = _Unsigned(floats.codes, floats.scale, None, 8, 0, E4M3FN)
        coded = _packed(unsigned, floats.n, floats.k, floats.group_size, None)
    return PackedWeight(fmt.id, spec.n, spec.k, "panels", coded, coded.nbytes)


def dequantize(packed: PackedWeight) -> torch.Tensor:
    """f32 [N, K], columns in their original order, rounded once per operation."""
    content: CodedPanels | FloatPanels = packed.content
    if isinstance(content, FloatPanels):
        values = content.data.float()
        if content.dtype == "bf16":
            values = values.transpose(2, 3).reshape(len(values), -1, PANEL)
        return values.transpose(1, 2).reshape(-1, values.shape[1])[: packed.n, : packed.k].contiguous()
    codes, scale, minimum = unpack(content)
    values = _numbers(content.facts.code, codes).reshape(len(codes), -1, content.facts.group) * scale[:, :, None]
    if minimum is not None:
        values -= minimum[:, :, None]
    in_order = torch.from_numpy(values.reshape(len(codes), -1)[: packed.n, : packed.k].copy())
    if content.permutation is None:
        return in_order
    return torch.empty_like(in_order).index_copy_(1, content.permutation, in_order)


def unpack(content: CodedPanels) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """codes i16 [N, K] less their offset, scale f32 [N, groups], minimum or None; n and k with their padding."""
    facts = content.facts
    slab, panels = _slab(facts.group), -(-facts.n // PANEL)
    groups, slabs, kinds = facts.k // facts.group, facts.group // slab, 2 if facts.has_minimum else 1
    coded = slabs * slab * PANEL * facts.bits // 8
    data = content.data.numpy()
    if facts.super:
        in_block = facts.super // facts.group
        blocks = data.reshape(panels, facts.k // facts.super, -1)
        units = blocks[:, :, : kinds * PANEL * 2].reshape(panels, -1, kinds, PANEL * 2)
        multiples = blocks[:, :, kinds * PANEL * 2 : kinds * PANEL * (2 + in_block)].view(np.int8)
        rows = blocks[:, :, kinds * PANEL * (2 + in_block) :].reshape(panels, groups, coded)
        of_groups = np.repeat(np.ascontiguousarray(units).view(np.float16).astype(np.float32), in_block, axis=1)
        scales = of_groups * multiples.reshape(panels, groups, kinds, PANEL)
    else:
        rows = data.reshape(panels, groups, -1)
        kind = np.float32 if facts.scale_f32 else np.float16
        scales = np.ascontiguousarray(rows[:, :, coded:]).view(kind).astype(np.float32)
        scales = scales.reshape(panels, groups, kinds, PANEL)
    scales = scales.transpose(2, 0, 3, 1).reshape(kinds, panels * PANEL, groups)
    codes, first = np.zeros((panels, groups, slabs, slab // 4, PANEL, 4), np.uint8), 0
    of_slabs = rows[:, :, :coded].reshape(panels, groups, slabs, -1)
    for bits, place in _planes(facts.bits):
        fields, size = 8 // bits, slab * PANEL * bits // 8
        packed = of_slabs[..., first : first + size].reshape(panels, groups, slabs, 1, -1, PANEL, 4)
        shifts = (np.arange(fields) * bits).astype(np.uint8).reshape(1, 1, 1, -1, 1, 1, 1)
        codes |= ((packed >> shifts & np.uint8((1 << bits) - 1)) << np.uint8(place)).reshape(codes.shape)
        first += size
    in_order = codes.transpose(0, 4, 1, 2, 3, 5).reshape(panels * PANEL, facts.k).astype(np.int16)
    offset = facts.zero_offset if facts.code == INTEGERS else 0
    return in_order - np.int16(offset), scales[0], scales[1] if facts.has_minimum else None


def _planes(bits: int) -> tuple[tuple[int, int], ...]:
    """How codes of so many bits are cut: (bits, from which on) of each part, which lies packed in bytes by itself."""
    return ((4, 0), (bits - 4, 4)) if bits in (5, 6) else ((bits, 0),)


def _slab(group: int) -> int:
    return 16 if group % 32 else 32


def _numbers(code: int, codes: np.ndarray) -> np.ndarray:
    """f32 of integers, or of what their bits or places stand for; twice an e2m1."""
    if code == E4M3FN:
        return f8e4m3fn_to_f32(codes.astype(np.uint8))
    integers = {E2M1: _TWICE_E2M1, IQ4: IQ4_INTEGERS}.get(code)
    return (codes if integers is None else integers[codes]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Unsigned:
    """codes u8 [N, K] as stored, integers plus `offset` or small floats; scale, minimum f32 [N, groups]. scale_codes:
    the scales as codes, and the minimums where there are any; empty: they are not to be stored so."""

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None
    bits: int
    offset: int
    code: int = INTEGERS
    scale_codes: tuple[ScaleCodes, ...] = ()


def _packed(unsigned: _Unsigned, n: int, k: int, group: int, permutation: np.ndarray | None) -> CodedPanels:
    codes, bits, offset, columns = unsigned.codes, unsigned.bits, unsigned.offset, k
    if n % PANEL:
        nothing = offset if unsigned.code == INTEGERS else 0
        codes = np.pad(codes, ((0, -n % PANEL), (0, 0)), constant_values=nothing)
    if k % _slab(group):  # only where one scale serves a whole row
        codes = np.pad(codes, ((0, 0), (0, -k % 32)), constant_values=offset)
        group = k = codes.shape[1]
    panels, slab = len(codes) // PANEL, _slab(group)
    groups, kinds = k // group, 1 if unsigned.minimum is None else 2
    parts = []
    for width, place in _planes(bits):
        fields = 8 // width
        # [panel, row, group, slab, field, step in the field, 4 bytes] -> [panel, group, slab, step, row, 4 bytes]
        shaped = codes.reshape(panels, PANEL, groups, group // slab, fields, slab // 4 // fields, 4)
        shaped = shaped.transpose(4, 0, 2, 3, 5, 1, 6) >> np.uint8(place) & np.uint8((1 << width) - 1)
        joined = np.ascontiguousarray(shaped[0])
        for field in range(1, fields):
            joined |= shaped[field] << np.uint8(field * width)
        parts.append(joined.reshape(panels, groups, group // slab, -1))
    packed = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)
    packed = packed.reshape(panels, groups, -1)
    in_block, exact = 0, True
    if unsigned.scale_codes:
        blocks = unsigned.scale_codes[0].unit.shape[1]
        in_block = groups // blocks
        units = [_of_panels(coded.unit.astype(np.float16)) for coded in unsigned.scale_codes]
        multiples = [_of_panels(coded.codes) for coded in unsigned.scale_codes]
        head = [
            np.stack(units, axis=2).view(np.uint8).reshape(panels, blocks, -1),
            np.stack(multiples, axis=2).view(np.uint8).reshape(panels, blocks, -1),
        ]
        data = _aligned(np.concatenate([*head, packed.reshape(panels, blocks, -1)], axis=2))
    else:
        floats = [unsigned.scale] if unsigned.minimum is None else [unsigned.scale, unsigned.minimum]
        halves = [_as_half(values) for values in floats]
        exact = all(half is not None for half in halves)
        chosen = halves if exact else floats
        stored = np.stack([_of_panels(values) for values in chosen], axis=2)  # type: ignore[arg-type]
        data = _aligned(np.concatenate([packed, stored.view(np.uint8).reshape(panels, groups, -1)], axis=2))
    facts = Panels(data.data_ptr(), n, k, group, bits, offset, kinds == 2, not exact, unsigned.code, in_block * group)
    return CodedPanels(data, facts, columns, None if permutation is None else torch.from_numpy(permutation.copy()))


def _of_panels(values: np.ndarray) -> np.ndarray:
    """[N, columns] -> [panels, columns, 32], zeros beyond N."""
    padded = np.pad(values, ((0, -len(values) % PANEL), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, PANEL, values.shape[1]).transpose(0, 2, 1))


def _by_table(grouped: GroupedWeight, name: str) -> _Unsigned:
    code, integers, offset = TABLES[name]
    places = np.zeros(256, np.uint8)
    places[integers[::-1].view(np.uint8)] = np.arange(16, dtype=np.uint8)[::-1]  # of two zeros the first
    codes = places[grouped.codes.view(np.uint8)]
    return _Unsigned(codes, grouped.scale, None, 4, offset, code, _scale_codes(grouped, BY_TABLE))


def _unsigned(grouped: GroupedWeight) -> _Unsigned:
    codes, scale, minimum = grouped.codes, grouped.scale, grouped.minimum
    low, high = int(codes.min()), int(codes.max())
    bits = _bits(grouped)
    if minimum is not None and low >= 0 and high < 1 << bits:
        return _Unsigned(codes.view(np.uint8), scale, minimum, bits, 0, INTEGERS, _scale_codes(grouped, bits))
    if minimum is None and low >= -(1 << bits - 1) and high < 1 << bits - 1:
        offset = 1 << bits - 1
        stored = codes.view(np.uint8) + np.uint8(offset)
        return _Unsigned(stored, scale, None, bits, offset, INTEGERS, _scale_codes(grouped, bits))
    if bits < 6 and minimum is None:
        # A zero point was subtracted: unsigned fields from the lowest code of each group up; what that takes away joins
        # the minimum, exactly: the product of an f16 scale and a small integer.
        lowest = codes.reshape(grouped.n, -1, grouped.group_size).min(-1)
        fields = codes - np.repeat(lowest, grouped.group_size, axis=1)
        if int(fields.max()) < 1 << bits:
            return _Unsigned(fields.view(np.uint8), scale, -scale * lowest, bits, 0)
    return _Unsigned(codes.view(np.uint8) + np.uint8(128), scale, minimum, 8, 128)


def _bits(grouped: GroupedWeight) -> int:
    """The least that these codes can be stored in, of what there are loops for."""
    for bits in (2, 4, 5, 6):
        with_floats = bits in (2, 4) or (bits == 5 and _slab(grouped.group_size) == 32)
        if bits >= grouped.bits and (with_floats or _scale_codes(grouped, bits)):
            return bits
    return 8


def _scale_codes(grouped: GroupedWeight, bits: int) -> tuple[ScaleCodes, ...]:
    """A weight's scales as codes, and its minimums, where these are codes and there are loops for such."""
    codes = [grouped.scale_codes] if grouped.minimum is None else [grouped.scale_codes, grouped.minimum_codes]
    kept = tuple(coded for coded in codes if coded is not None)
    fits = (bits, grouped.minimum is not None, _slab(grouped.group_size)) in CODED_SCALES
    if len(kept) < len(codes) or not fits or kept[0].codes.shape[1] > kept[0].unit.shape[1] * MOST_GROUPS:
        return ()
    return kept


def _as_half(values: np.ndarray) -> np.ndarray | None:
    """f32 values as f16 where that holds every one of them exactly."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values, equal_nan=True) else None


def _float_panels(weight: np.ndarray, dtype: str) -> torch.Tensor:
    n, k = weight.shape
    pairs = 2 if dtype == "bf16" else 1
    padded = np.pad(weight, ((0, -n % PANEL), (0, -k % pairs)))
    shaped = padded.reshape(len(padded) // PANEL, PANEL, -1, pairs).transpose(0, 2, 1, 3)
    shaped = np.ascontiguousarray(shaped if pairs == 2 else shaped[..., 0])
    data = _aligned(shaped.view(np.uint8))
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    return data.view(kind).view(shaped.shape)


def _aligned(values: np.ndarray) -> torch.Tensor:
    """A copy as u8 of the same shape whose first byte lies on a multiple of 64."""
    data = _ARENA.take(values.nbytes).reshape(values.shape)
    data[...] = values
    return torch.from_numpy(data)
