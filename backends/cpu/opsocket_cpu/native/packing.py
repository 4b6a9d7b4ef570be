"""Packing into panels, once, at load: from a format's canonical form. Panels are packed by all threads of a session, a
few at a time, so that what lies between stays in a core's caches."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from opsocket.quantization import GroupedWeight, ScaleCodes
from opsocket_cpu.arena import Arena
from opsocket_cpu.native.panels import (
    BY_TABLE,
    CODED_SCALES,
    INTEGERS,
    MOST_GROUPS,
    PANEL,
    TABLES,
    CodedPanels,
    Panels,
    planes_of,
    slab_of,
)

_ARENA = Arena()
_AT_A_TIME = 1 << 20
"""Codes that are packed at a time."""


@dataclass(frozen=True, eq=False)
class Unsigned:
    """codes u8 [N, K] as stored, integers plus `offset` or small floats; scale, minimum f32 [N, groups]. scale_codes:
    the scales as codes, and the minimums where there are any; empty: they are not to be stored so."""

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None
    bits: int
    offset: int
    code: int = INTEGERS
    scale_codes: tuple[ScaleCodes, ...] = ()


def pack(unsigned: Unsigned, n: int, k: int, group: int, permutation: np.ndarray | None, threads: int) -> CodedPanels:
    """Panels of a weight [n, k] whose groups are of `group` columns; owns its memory."""
    codes, bits, columns = unsigned.codes, unsigned.bits, k
    nothing = unsigned.offset if unsigned.code == INTEGERS else 0
    if k % slab_of(group):  # only where one scale serves a whole row
        codes = np.pad(codes, ((0, 0), (0, -k % 32)), constant_values=nothing)
        group = k = codes.shape[1]
    panels, groups, kinds = -(-n // PANEL), k // group, 1 if unsigned.minimum is None else 2
    coded_bytes = PANEL * group * bits // 8
    if unsigned.scale_codes:
        blocks, exact = unsigned.scale_codes[0].unit.shape[1], True
        in_block = groups // blocks
        heads = [
            _of_panels([coded.unit.astype(np.float16) for coded in unsigned.scale_codes]).reshape(panels, blocks, -1),
            _of_panels([coded.codes for coded in unsigned.scale_codes]).reshape(panels, blocks, -1),
        ]
        head_bytes = sum(head.shape[2] for head in heads)
        data = _aligned((panels, blocks, head_bytes + in_block * coded_bytes))
        np.concatenate(heads, axis=2, out=data[:, :, :head_bytes])
        of_codes = data[:, :, head_bytes:].reshape(panels, blocks, in_block, coded_bytes)
    else:
        in_block = 0
        floats = [unsigned.scale] if unsigned.minimum is None else [unsigned.scale, unsigned.minimum]
        halves = [half for half in map(_as_half, floats) if half is not None]
        exact = len(halves) == len(floats)
        scales = _of_panels(halves if exact else floats).reshape(panels, groups, -1)
        data = _aligned((panels, groups, coded_bytes + scales.shape[2]))
        data[:, :, coded_bytes:] = scales
        of_codes = data[:, :, :coded_bytes]

    def fill(first: int) -> None:
        some = codes[first * PANEL : (first + step) * PANEL]
        if len(some) % PANEL:
            some = np.pad(some, ((0, -len(some) % PANEL), (0, 0)), constant_values=nothing)
        to = of_codes[first : first + step]
        to[...] = _joined(some, bits, group).reshape(to.shape)

    step = max(1, _AT_A_TIME // (PANEL * k))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(0, panels, step)))
    tensor = torch.from_numpy(data)
    facts = Panels(
        tensor.data_ptr(), n, k, group, bits, unsigned.offset, kinds == 2, not exact, unsigned.code, in_block * group
    )
    return CodedPanels(tensor, facts, columns, None if permutation is None else torch.from_numpy(permutation.copy()))


def _joined(codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """u8 [rows, k] as groups have them, [panel, group, bytes]; rows of whole panels."""
    panels, k, slab = len(codes) // PANEL, codes.shape[1], slab_of(group)
    parts = []
    for width, place in planes_of(bits):
        fields = 8 // width
        # [panel, row, group, slab, field, step in the field, 4 bytes] -> [field, panel, group, slab, step, row, 4]
        part = codes if width == bits else codes >> np.uint8(place) & np.uint8((1 << width) - 1)
        shaped = part.reshape(panels, PANEL, k // group, group // slab, fields, slab // 4 // fields, 4)
        shaped = shaped.transpose(4, 0, 2, 3, 5, 1, 6)
        joined = np.ascontiguousarray(shaped[0])
        for field in range(1, fields):
            joined |= shaped[field] << np.uint8(field * width)
        parts.append(joined.reshape(panels, k // group, group // slab, -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)


def _of_panels(values: list[np.ndarray]) -> np.ndarray:
    """[N, columns] each -> their bytes, u8 [panels, columns, kinds, 32 elements], zeros beyond N."""
    padded = [np.pad(one, ((0, -len(one) % PANEL), (0, 0))).reshape(-1, PANEL, one.shape[1]) for one in values]
    return np.ascontiguousarray(np.stack([one.transpose(0, 2, 1) for one in padded], axis=2)).view(np.uint8)


def float_panels(weight: np.ndarray, dtype: str) -> torch.Tensor:
    """A weight of floats as `FloatPanels` has it."""
    n, k = weight.shape
    pairs = 2 if dtype == "bf16" else 1
    padded = np.pad(weight, ((0, -n % PANEL), (0, -k % pairs)))
    shaped = padded.reshape(len(padded) // PANEL, PANEL, -1, pairs).transpose(0, 2, 1, 3)
    shaped = np.ascontiguousarray(shaped if pairs == 2 else shaped[..., 0])
    data = _aligned(shaped.view(np.uint8).shape)
    data[...] = shaped.view(np.uint8)
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    return torch.from_numpy(data).view(kind).view(shaped.shape)


def by_table(grouped: GroupedWeight, name: str) -> Unsigned:
    """Codes of a weight whose format calls its codes `name`, of `TABLES`: their places in the table."""
    code, integers, offset = TABLES[name]
    places = np.zeros(256, np.uint8)
    places[integers[::-1].view(np.uint8)] = np.arange(16, dtype=np.uint8)[::-1]  # of two zeros the first
    codes = places[grouped.codes.view(np.uint8)]
    return Unsigned(codes, grouped.scale, None, 4, offset, code, _scale_codes(grouped, BY_TABLE))


def unsigned(grouped: GroupedWeight) -> Unsigned:
    """Integer codes in the least bits that hold them, of what there are loops for; their offset is 0 where a weight has
    minimums and the codes have fewer than 8 bits."""
    codes, scale, minimum = grouped.codes, grouped.scale, grouped.minimum
    low, high = int(codes.min()), int(codes.max())
    bits = _bits(grouped)
    if minimum is not None and low >= 0 and high < 1 << bits:
        return Unsigned(codes.view(np.uint8), scale, minimum, bits, 0, INTEGERS, _scale_codes(grouped, bits))
    if minimum is None and low >= -(1 << bits - 1) and high < 1 << bits - 1:
        offset = 1 << bits - 1
        stored = codes.view(np.uint8) + np.uint8(offset)
        return Unsigned(stored, scale, None, bits, offset, INTEGERS, _scale_codes(grouped, bits))
    if bits < 6 and minimum is None:
        # A zero point was subtracted: unsigned fields from the lowest code of each group up; what that takes away joins
        # the minimum, exactly: the product of an f16 scale and a small integer.
        lowest = codes.reshape(grouped.n, -1, grouped.group_size).min(-1)
        fields = codes - np.repeat(lowest, grouped.group_size, axis=1)
        if int(fields.max()) < 1 << bits:
            return Unsigned(fields.view(np.uint8), scale, -scale * lowest, bits, 0)
    return Unsigned(codes.view(np.uint8) + np.uint8(128), scale, minimum, 8, 128)


def _bits(grouped: GroupedWeight) -> int:
    """The least that these codes can be stored in, of what there are loops for."""
    for bits in (2, 4, 5, 6):
        with_floats = bits in (2, 4) or (bits == 5 and slab_of(grouped.group_size) == 32)
        if bits >= grouped.bits and (with_floats or _scale_codes(grouped, bits)):
            return bits
    return 8


def _scale_codes(grouped: GroupedWeight, bits: int) -> tuple[ScaleCodes, ...]:
    """A weight's scales as codes, and its minimums, where these are codes and there are loops for such."""
    codes = [grouped.scale_codes] if grouped.minimum is None else [grouped.scale_codes, grouped.minimum_codes]
    kept = tuple(coded for coded in codes if coded is not None)
    fits = (bits, grouped.minimum is not None, slab_of(grouped.group_size)) in CODED_SCALES
    if len(kept) < len(codes) or not fits or kept[0].codes.shape[1] > kept[0].unit.shape[1] * MOST_GROUPS:
        return ()
    return kept


def _as_half(values: np.ndarray) -> np.ndarray | None:
    """f32 values as f16 where that holds every one of them exactly."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values, equal_nan=True) else None


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """u8 of that shape whose first byte lies on a multiple of 64; its content is undefined."""
    return _ARENA.take(math.prod(shape)).reshape(shape)
