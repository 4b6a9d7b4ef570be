"""Rows of one plane to rows of another, as if all were read before any is written: what moves and copies share.

The host finds the rows that one pair reads and another writes; the device brings those to scratch in a launch of its
own, and a second launch writes all. Where nothing overlaps, as in copy-on-write, the first is left out: each byte is
read once and written once.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from opsocket.operators import Cache, Session
from opsocket_triton.cache.tables import DeviceTable, Scratch
from opsocket_triton.launch import launch

_COLUMNS = 1024
_TILE_BYTES = 8192
_MOST_ROWS = 512
_PROGRAMS = 1024


@triton.jit
def copy_rows(
    table,
    src,
    dst,
    scratch,
    rows,
    stride,
    width,
    STAGE: tl.constexpr,
    STAGED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """table i64[N + 1, 3]: N, then (first row of the source, first row of the target, place in scratch or -1) of each
    pair, which is `rows` rows, `stride` apart in the planes, of `width` units each.

    STAGE: rows that have a place in scratch are brought there. Else all rows reach dst, those from there where STAGED.
    Each program goes through the pairs in steps of the grid, so that a frozen grid serves any number of them.
    """
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = (tl.load(table) * rows).to(tl.int32)  # a table of 2^31 rows is larger than any device
    for first in range(tl.program_id(0) * ROWS, total, tl.num_programs(0) * ROWS):
        number = first + tl.arange(0, ROWS)
        pair = number // rows
        head = number % rows
        inside = number < total
        source = tl.load(table + 3 + 3 * pair, mask=inside, other=0) + head * stride
        place = tl.load(table + 5 + 3 * pair, mask=inside, other=-1)
        kept = ((place * rows + head) * width)[:, None] + column[None, :]
        mask = inside[:, None] & (column < width)[None, :]
        staged = mask & (place >= 0)[:, None]
        read = (source * width)[:, None] + column[None, :]
        if STAGE:
            tl.store(scratch + kept, tl.load(src + read, mask=staged, other=0), mask=staged)
        else:
            target = tl.load(table + 4 + 3 * pair, mask=inside, other=0) + head * stride
            written = (target * width)[:, None] + column[None, :]
            if STAGED:
                direct = tl.load(src + read, mask=mask & (place < 0)[:, None], other=0)
                value = tl.where(staged, tl.load(scratch + kept, mask=staged, other=0), direct)
            else:
                value = tl.load(src + read, mask=mask, other=0)
            tl.store(dst + written, value, mask=mask)


class Copies:
    """The pairs of one batch: which rows go where, and which of them by way of scratch.

    rows, stride: of the planes' rows that make up one pair. row_bytes: of such a row in each plane, by name.
    """

    def __init__(self, session: Session, capacity: int, rows: int, stride: int, row_bytes: dict[str, int]) -> None:
        self._session, self._rows, self._stride, self._row_bytes = session, rows, stride, row_bytes
        self._table = DeviceTable(session, capacity, 3)
        self._scratch = Scratch(session)
        self._pairs = self._staged = 0

    def reserve(self, pairs: int) -> None:
        """Scratch for so many overlapping pairs."""
        self._scratch.reserve(pairs * self._pair_bytes, False)

    @property
    def _pair_bytes(self) -> int:
        return self._rows * sum(_padded(size) for size in self._row_bytes.values())

    def update(self, source: np.ndarray, target: np.ndarray, is_recorded: bool) -> None:
        """source, target i64[N]: first rows of each pair; targets are distinct. Writes the table.

        `ResourceError` where more pairs overlap than a recorded graph has scratch for.
        """
        overlapping = np.isin(source, target) & (source != target)
        place = np.where(overlapping, np.cumsum(overlapping) - 1, -1)
        staged = int(overlapping.sum())
        self._scratch.reserve(staged * self._pair_bytes, is_recorded)
        self._table.write(source, target, place)
        self._pairs, self._staged = len(source), staged

    def run(self, src: Cache, dst: Cache) -> None:
        """Enqueue the copies of every plane."""
        capturing = self._session.capturing is not None
        room = self._scratch.room // self._pair_bytes * self._rows
        staged = room > 0 and (capturing or self._staged > 0)
        start = 0
        for name, size in self._row_bytes.items():
            unit = _unit(size)
            width = size // unit.itemsize
            scratch = self._scratch.take(start, room * size).view(unit) if staged else None
            start += _padded(room * size)
            columns = min(_COLUMNS, triton.next_power_of_2(width))
            tile = min(_MOST_ROWS, max(1, _TILE_BYTES // (columns * unit.itemsize)))
            programs = triton.cdiv(self._pairs * self._rows, tile)
            grid = (max(programs, _PROGRAMS) if capturing else programs, triton.cdiv(width, columns))
            for stage in (True, False) if staged else (False,):
                launch(
                    copy_rows,
                    grid,
                    table=self._table.entries,
                    src=_units(src.planes[name], unit),
                    dst=_units(dst.planes[name], unit),
                    scratch=scratch,
                    rows=self._rows,
                    stride=self._stride,
                    width=width,
                    STAGE=stage,
                    STAGED=staged,
                    ROWS=tile,
                    COLUMNS=columns,
                )


def _units(plane: torch.Tensor, unit: torch.dtype) -> torch.Tensor:
    return plane.view(torch.uint8).view(-1).view(unit)


def _padded(size: int) -> int:
    """Bytes, so that what follows begins where 16-byte loads can."""
    return -(-size // 16) * 16


def _unit(size: int) -> torch.dtype:
    """The widest integers that a row of `size` bytes is made of."""
    for dtype in (torch.int64, torch.int32, torch.int16):
        if size % dtype.itemsize == 0:
            return dtype
    return torch.uint8
