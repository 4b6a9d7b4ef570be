"""What a batch asks of the kernel, as a list of items: which rows of a tile meet which keys.

Host arrays only. The list is one array of i32, so that one copy brings a step's batch to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import AttentionBatch, AttentionSpec, CacheSpec

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

HEADER: Final = 16
ITEM: Final = 16
"""q_row0, q_len, kv_len, position of query 0 from key 0, first row, first key, last key + 1, first and last + 1 of
the keys that every row sees, first row of its part or -1, place of the sequence's block table, place of its positions
or -1, row of key 0 (i64), first byte of the tree mask (i64)."""
MERGE: Final = 8
"""q_row0, row, parts, row of the first part, rows of a part, row within the part, and two that are not used."""
SMALL_ROWS: Final = 16
"""Rows of a small tile: the fewest that matrix units take."""
UNLIMITED: Final = 2**31 - 1
_FAR: Final = 2**30
"""Positions relative to key 0 are held within this, beyond every key."""


@dataclass(frozen=True)
class Tiling:
    """rows: of a large tile. keys: of either kind's tile, the more of both, which parts are multiples of. programs: per
    KV head that fill the device; where tiles are fewer, their keys are split into parts of at least `least_part`."""

    rows: int
    keys: int
    programs: int
    least_part: int

    @property
    def has_large(self) -> bool:
        """Whether large tiles are higher than small ones; where not, all are small."""
        return self.rows > SMALL_ROWS

    @property
    def most_parts(self) -> int:
        """Of all tiles together: a part has at least its share of all keys, and the last one of a tile what is left."""
        return 2 * self.programs


@dataclass(frozen=True, eq=False)
class Schedule:
    """ints: header, items of small and of large tiles, merges, positions of queries, block table. small, large, merges:
    how many of each. part_rows: of parts, for one KV head."""

    ints: Int32
    small: int
    large: int
    merges: int
    part_rows: int


def schedule(batch: AttentionBatch, spec: AttentionSpec, cache: CacheSpec | None, tiling: Tiling) -> Schedule:
    """The items of a validated batch."""
    q_indptr, kv_lens = np.asarray(batch.q_indptr, np.int64), np.asarray(batch.kv_lens, np.int64)
    q_lens, group = np.diff(q_indptr), spec.group
    kv_start = np.broadcast_to(np.asarray(batch.kv_start, np.int64), kv_lens.shape)
    start = kv_lens - q_lens if batch.q_start is None else np.asarray(batch.q_start, np.int64) - kv_start
    start = np.clip(start, -_FAR, _FAR)
    positions = None
    if batch.q_positions is not None:
        relative = np.asarray(batch.q_positions, np.int64) - np.repeat(kv_start, q_lens)
        positions = np.clip(relative, -_FAR, _FAR)

    rows = q_lens * group
    is_small = (rows <= SMALL_ROWS) | (not tiling.has_large)
    height = np.where(is_small, SMALL_ROWS, tiling.rows)
    tiles = -(-rows // height)
    of = np.repeat(np.arange(len(rows)), tiles)
    first_row = (np.arange(len(of)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * height[of]
    first = first_row // group
    last = (np.minimum(first_row + height[of], rows[of]) - 1) // group
    if positions is None:
        lowest, highest = start[of] + first, start[of] + last
    else:
        lowest, highest = _extremes(positions, q_indptr[of] + first, q_indptr[of] + last + 1)

    length = kv_lens[of]
    left, right = window(spec)
    begin = np.clip(lowest - left, 0, length)
    end = np.maximum(np.minimum(length, highest + right + 1), begin)
    full_begin, full_end = np.maximum(highest - left, 0), np.minimum(length, lowest + right + 1)
    if spec.mask == "tree":
        full_end = np.minimum(full_end, length - q_lens[of])

    parts, size = _parts(end - begin, tiling)
    tile = np.repeat(np.arange(len(of)), parts)
    number = np.arange(len(tile)) - np.repeat(np.cumsum(parts) - parts, parts)
    part_rows = np.where(parts > 1, parts * height[of], 0)
    first_part = np.cumsum(part_rows) - part_rows

    seq = of[tile]
    items = np.zeros((len(tile), ITEM), np.int64)
    items[:, 0], items[:, 1], items[:, 2], items[:, 3] = q_indptr[seq], q_lens[seq], kv_lens[seq], start[seq]
    items[:, 4] = first_row[tile]
    items[:, 5] = begin[tile] + number * size[tile]
    items[:, 6] = np.minimum(items[:, 5] + size[tile], end[tile])
    items[:, 7] = np.minimum(full_begin[tile], items[:, 6])
    items[:, 8] = np.clip(full_end[tile], 0, items[:, 6])
    items[:, 9] = np.where(parts[tile] > 1, first_part[tile] + number * height[seq], -1)
    for at, values in ((12, batch.kv_indptr), (14, batch.mask_indptr)):
        if values is not None:
            items[:, at], items[:, at + 1] = _halves(np.asarray(values, np.int64)[seq])

    # The longest first: what is left at the end is short.
    order = np.argsort(items[:, 5] - items[:, 6], kind="stable")
    small, large = order[is_small[seq[order]]], order[~is_small[seq[order]]]
    merges = _merges(np.flatnonzero(parts > 1), q_indptr[of], first_row, np.minimum(height[of], rows[of] - first_row),
                     parts, first_part, height[of])  # fmt: skip
    table = None if cache is None else _table(batch, kv_lens, cache.block_size)
    items_at = HEADER
    merges_at = items_at + ITEM * len(items)
    positions_at = merges_at + merges.size
    table_at = positions_at + (0 if positions is None else len(positions))
    items[:, 10] = 0 if table is None else table_at + seq * table.shape[1]
    items[:, 11] = -1 if positions is None else positions_at + q_indptr[seq]

    header = np.zeros(HEADER, np.int64)
    header[:6] = len(small), items_at, len(large), items_at + ITEM * len(small), len(merges), merges_at
    block_size = 1 if cache is None else cache.block_size
    header[6:13] = group, left, right, block_size, block_size.bit_length() - 1, spec.sinks, spec.want_lse
    pieces = (header, items[small], items[large], merges, positions, table)
    ints = np.concatenate([np.asarray(piece, np.int64).ravel() for piece in pieces if piece is not None])
    return Schedule(_as_i32(ints), len(small), len(large), len(merges), int(part_rows.sum()))


def window(spec: AttentionSpec) -> tuple[int, int]:
    """How far a query sees to the left and to the right."""
    left = UNLIMITED if spec.window_left is None else min(spec.window_left, UNLIMITED)
    right = UNLIMITED if spec.window_right is None else min(spec.window_right, UNLIMITED)
    return left, 0 if spec.mask == "causal" else right


def _parts(keys: Int64, tiling: Tiling) -> tuple[Int64, Int64]:
    """Into how many parts each tile's keys are split, one at least, and how many keys a part has."""
    share = -(-int(keys.sum()) // tiling.programs)
    least = max(tiling.least_part, share)
    parts = np.maximum(-(-keys // least), 1)
    size = np.maximum(-(-keys // parts), 1)
    size = -(-size // tiling.keys) * tiling.keys
    return np.maximum(-(-keys // size), 1), size


def _merges(split: Int64, q_row0: Int64, first_row: Int64, count: Int64, parts: Int64, first_part: Int64,
            height: Int64) -> Int64:  # fmt: skip
    """One for each row of the tiles that are split."""
    tile = np.repeat(split, count[split])
    within = np.arange(len(tile)) - np.repeat(np.cumsum(count[split]) - count[split], count[split])
    merges = np.zeros((len(tile), MERGE), np.int64)
    columns = (q_row0[tile], first_row[tile] + within, parts[tile], first_part[tile], height[tile], within)
    for at, values in enumerate(columns):
        merges[:, at] = values
    return merges


def _extremes(values: Int64, starts: Int64, stops: Int64) -> tuple[Int64, Int64]:
    """Least and largest of the values in each of some runs, none of them empty."""
    if not len(starts):
        return starts, starts
    edges = np.stack([starts, stops], axis=1).ravel()
    padded = np.append(values, 0)  # a run may stop at the end, where an edge would be out of range
    return np.minimum.reduceat(padded, edges)[::2], np.maximum.reduceat(padded, edges)[::2]


def _table(batch: AttentionBatch, kv_lens: Int64, block_size: int) -> Any:
    """i32[B, W] of the columns that are read."""
    used = -(-int(kv_lens.max(initial=0)) // block_size)
    return np.asarray(batch.block_table)[:, :used]


def _halves(values: Int64) -> tuple[Int64, Int64]:
    """i64 as two i32, the low one first."""
    low = values & 0xFFFFFFFF
    return np.where(low >= 2**31, low - 2**32, low), values >> 32


def _as_i32(values: Int64) -> Int32:
    """What is out of range is junk that is not read: entries of a block table past its end."""
    return values.astype(np.int32)
