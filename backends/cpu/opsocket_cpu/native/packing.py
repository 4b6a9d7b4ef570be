"""Packing into panels, once, at load: from a format's canonical form. All threads of a session unpack and pack, some
rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from opsocket.quantization import GroupedWeight, ScaleCodes
from opsocket_cpu.arena import Arena
from opsocket_cpu.native.library import Library
from opsocket_cpu.native.panels import (
    BY_TABLE,
    CODED_SCALES,
    INTEGERS,
    MOST_GROUPS,
    PANEL,
    TABLES,
    CodedPanels,
    Panels,
    slab_of,
)

_ARENA = Arena()
_AT_A_TIME = 1 << 21
"""Codes that a thread unpacks and packs at a time. Of fewer, what Python does between takes longer than they do."""


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

    @property
    def floats(self) -> list[np.ndarray]:
        return [self.scale] if self.minimum is None else [self.scale, self.minimum]

    @cached_property
    def halves(self) -> list[np.ndarray] | None:
        """`floats` as f16, where that holds every one of them exactly, or they are not stored."""
        halves = [half for half in map(_as_half, [] if self.scale_codes else self.floats) if half is not None]
        return halves if self.scale_codes or len(halves) == len(self.floats) else None

    @property
    def form(self) -> tuple[object, ...]:
        """What rows of one weight have in common."""
        facts = self.bits, self.offset, self.code, self.minimum is None, len(self.scale_codes)
        return *facts, self.halves is None


Rows = Callable[[int, int], Unsigned]
"""Rows first to last - 1 of a weight; called from several threads."""


class _UnlikeRowsError(Exception):
    """Some rows of a weight take more bits than others, or f32 scales."""


def pack(
    rows: Rows, n: int, k: int, group: int, permutation: np.ndarray | None, threads: int, library: Library
) -> CodedPanels:
    """Panels of a weight [n, k] whose groups are of `group` columns; owns its memory."""
    some = _rows_at_a_time(k)
    if some < n:
        try:
            return _pack(rows, n, k, group, permutation, threads, library, some)
        except _UnlikeRowsError:
            pass
    return _pack(rows, n, k, group, permutation, threads, library, n)


def _pack(
    rows: Rows, n: int, k: int, group: int, permutation: np.ndarray | None, threads: int, library: Library, some: int
) -> CodedPanels:
    """`some` rows at a time, a multiple of `PANEL`, or all of them."""
    columns, begin = k, rows(0, min(some, n))
    if k % slab_of(group):  # only where one scale serves a whole row
        group = k = -(-k // 32) * 32
    panels, groups, kinds = -(-n // PANEL), k // group, 1 if begin.minimum is None else 2
    coded_bytes = PANEL * group * begin.bits // 8
    if begin.scale_codes:
        blocks = begin.scale_codes[0].unit.shape[1]
        in_block = groups // blocks
        head_bytes = kinds * PANEL * (2 + in_block)
        data = _aligned((panels, blocks, head_bytes + in_block * coded_bytes))
    else:
        in_block = 0
        data = _aligned((panels, groups, coded_bytes + kinds * PANEL * (2 if begin.halves else 4)))
    tensor = torch.from_numpy(data)
    facts = Panels(
        tensor.data_ptr(), n, k, group, begin.bits, begin.offset,
        kinds == 2, begin.halves is None, begin.code, in_block * group,
    )  # fmt: skip

    def fill(first: int, part: Unsigned) -> None:
        if part.form != begin.form:
            raise _UnlikeRowsError
        here = data[first // PANEL : -(-(first + len(part.codes)) // PANEL)]
        if part.scale_codes:
            units = _of_panels([coded.unit.astype(np.float16) for coded in part.scale_codes])
            codes = _of_panels([coded.codes for coded in part.scale_codes])
            heads = [head.reshape(*here.shape[:2], -1) for head in (units, codes)]
            np.concatenate(heads, axis=2, out=here[:, :, :head_bytes])
        else:
            here[:, :, coded_bytes:] = _of_panels(part.halves or part.floats).reshape(*here.shape[:2], -1)
        library.pack_codes(facts, np.ascontiguousarray(part.codes), first)

    fill(0, begin)
    _for_each(lambda first: fill(first, rows(first, min(first + some, n))), range(some, n, some), threads)
    return CodedPanels(tensor, facts, columns, None if permutation is None else torch.from_numpy(permutation.copy()))


def _of_panels(values: list[np.ndarray]) -> np.ndarray:
    """[N, columns] each -> their bytes, u8 [panels, columns, kinds, 32 elements], zeros beyond N."""
    if rest := -len(values[0]) % PANEL:
        values = [np.pad(one, ((0, rest), (0, 0))) for one in values]
    padded = [one.reshape(-1, PANEL, one.shape[1]) for one in values]
    return np.ascontiguousarray(np.stack([one.transpose(0, 2, 1) for one in padded], axis=2)).view(np.uint8)


def float_panels(weight: np.ndarray, dtype: str, threads: int, library: Library) -> torch.Tensor:
    """A weight of floats as `FloatPanels` has it."""
    n, k = weight.shape
    kind, pairs = {"f32": (torch.float32, 1), "f16": (torch.float16, 1), "bf16": (torch.bfloat16, 2)}[dtype]
    panels, steps = -(-n // PANEL), -(-k // pairs)
    data = _aligned((panels, steps * PANEL * pairs * weight.itemsize))

    def fill(first: int) -> None:
        library.pack_floats(data, np.ascontiguousarray(weight[first : first + some]), pairs == 2, first)

    some = _rows_at_a_time(k)
    _for_each(fill, range(0, n, some), threads)
    shape = (panels, steps, PANEL, pairs) if pairs == 2 else (panels, steps, PANEL)
    return torch.from_numpy(data).view(kind).view(shape)


def _rows_at_a_time(k: int) -> int:
    return max(1, _AT_A_TIME // (PANEL * k)) * PANEL


def _for_each(fill: Callable[[int], None], firsts: range, threads: int) -> None:
    if len(firsts) < 2 or threads < 2:
        for first in firsts:
            fill(first)
    else:
        with ThreadPoolExecutor(min(threads, len(firsts))) as pool:
            list(pool.map(fill, firsts))


def by_table(grouped: GroupedWeight, name: str) -> Unsigned:
    """Codes of a weight whose format calls its codes `name`, of `TABLES`: their places in the table."""
    code, integers, offset = TABLES[name]
    places = np.zeros(256, np.uint8)
    places[integers[::-1].view(np.uint8)] = np.arange(16, dtype=np.uint8)[::-1]  # of two zeros the first
    codes = np.take(places, grouped.codes.view(np.uint8), mode="wrap")  # twice as fast as places[...]
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
    floats = torch.from_numpy(np.ascontiguousarray(values))
    half = floats.half()  # in a tenth of NumPy's time
    return half.numpy() if torch.equal(half.float().view(torch.int32), floats.view(torch.int32)) else None


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """u8 of that shape whose first byte lies on a multiple of 64; its content is undefined."""
    return _ARENA.take(math.prod(shape)).reshape(shape)
