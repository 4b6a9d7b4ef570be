"""Around attention by another library's kernels: the mask that they are given, and the rows that they leave.

Bytes: a mask's are few beside the keys that it masks. Of rows, q's type read and written once where they have to be
moved, else only the LSE; the launch is what either costs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import triton
import triton.language as tl

from opsocket.operators import Session
from opsocket_triton.cache.tables import DeviceTable
from opsocket_triton.launch import launch

PIECE: Final = 256
"""Bytes of a mask that one program makes."""
_COLUMNS: Final = 6


@triton.jit
def spread_tree(table, base, tree, mask, BASE: tl.constexpr, PIECE: tl.constexpr):
    """mask u8: bits [q_len, kv_len] of each request, row-major, least significant first. A query sees the history, and
    of the new tokens those whose bit in `tree` [q_len, q_len] is set; with BASE, of both those set in `base` only.

    A row of table, i64: first byte of the mask, bytes, first bit within the request, q_len, kv_len, first byte of the
    tree.
    """
    piece = tl.program_id(0)
    if piece >= tl.load(table):
        return
    row = table + (piece + 1) * 6
    first_byte = tl.load(row)
    count = tl.load(row + 1)
    first_bit = tl.load(row + 2)
    q_len = tl.load(row + 3).to(tl.int32)
    kv_len = tl.load(row + 4).to(tl.int32)
    tree_byte = tl.load(row + 5)
    # All bits of a mask may be more than 2^31; those from the beginning of this piece's first row are not.
    first_query = (first_bit // kv_len).to(tl.int32)
    within = (first_bit - first_query.to(tl.int64) * kv_len).to(tl.int32)
    byte = tl.arange(0, PIECE)
    inside = byte < count
    made = tl.zeros([PIECE], tl.int32)
    for bit in tl.static_range(8):
        linear = within + byte * 8 + bit
        row_on = linear // kv_len
        query = first_query + row_on
        new = linear - row_on * kv_len - (kv_len - q_len)
        is_new = new >= 0
        at = query * q_len + new
        asked = inside & is_new & (query < q_len)
        stored = tl.load(tree + tree_byte + at // 8, mask=asked, other=0).to(tl.int32)
        set_bit = (stored >> (at % 8)) & 1
        seen = tl.where(is_new, set_bit, 1)
        made |= tl.where(query < q_len, seen, 0) << bit
    if BASE:
        made &= tl.load(base + first_byte + byte, mask=inside, other=0).to(tl.int32)
    tl.store(mask + first_byte + byte, made.to(tl.uint8), mask=inside)


@triton.jit
def finish_rows(table, made, out, out_row, log2, lse, lse_row, heads, elements,
                COPY: tl.constexpr, BASE2: tl.constexpr, LSE: tl.constexpr, HEADS: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """Row program 0: out is `made` with COPY; 0 of a row that sees nothing, and its LSE -inf; lse = log2 * ln 2.

    table i64: how many rows there are, then of each whether it is known to see nothing. Where there is log2 (BASE2),
    its -inf says so too. made [rows, elements], log2 f32 [rows, heads], both dense.
    """
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(table):
        return
    is_blind = tl.load(table + 1 + row) != 0
    if BASE2:
        is_blind = is_blind | (tl.load(log2 + row * heads) == float("-inf"))
    for start in range(0, elements, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < elements
        if COPY:
            value = tl.load(made + row * elements + column, mask=inside & (is_blind == 0), other=0.0)
            tl.store(out + row * out_row + column, value, mask=inside)
        else:
            zero = tl.zeros([BLOCK], out.dtype.element_ty)
            tl.store(out + row * out_row + column, zero, mask=inside & is_blind)
    if LSE:
        head = tl.arange(0, HEADS)
        value = tl.load(log2 + row * heads + head, mask=head < heads, other=0.0) * 0.6931471805599453
        tl.store(lse + row * lse_row + head, tl.where(is_blind, float("-inf"), value), mask=head < heads)


class TreeBits:
    """Masks over all keys, made anew from each run's tree. capacity: bytes of all masks. size: requests."""

    def __init__(self, session: Session, capacity: int, size: int, has_base: bool) -> None:
        self._session = session
        self._table = DeviceTable(session, capacity // PIECE + size, _COLUMNS)
        self._base = session.empty((max(1, capacity),), "u8") if has_base else None
        self._pieces = 0

    def update(
        self, starts: np.ndarray, q_lens: np.ndarray, kv_lens: np.ndarray, trees: np.ndarray, base: np.ndarray | None
    ) -> None:
        """starts i64[B + 1], trees i64[B]: first bytes of the masks and of the trees. base: the bits that positions
        leave, in the masks' own layout."""
        pieces = -(-np.diff(starts) // PIECE)
        request = np.repeat(np.arange(len(pieces)), pieces)
        number = np.arange(len(request)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        first = starts[:-1][request] + number * PIECE
        count = np.minimum(starts[1:][request] - first, PIECE)
        columns = (first, count, number * (8 * PIECE), q_lens[request], kv_lens[request], trees[request])
        self._table.write(*columns)
        self._pieces = len(request)
        if self._base is not None and base is not None:
            self._session.write(self._base, base)

    def run(self, tree: torch.Tensor, mask: torch.Tensor) -> None:
        pieces = self._pieces if self._session.capturing is None else self._table.capacity
        launch(
            spread_tree,
            (pieces,),
            table=self._table.entries,
            base=self._base,
            tree=tree,
            mask=mask,
            BASE=self._base is not None,
            PIECE=PIECE,
        )


class Rows:
    """What is left to do of rows [T, H, D] that another library made. capacity: rows."""

    def __init__(self, session: Session, capacity: int) -> None:
        self._table = DeviceTable(session, capacity, 1)
        self._session, self.capacity = session, capacity

    def update(self, blind: np.ndarray) -> None:
        """Whether each row of the batch sees nothing."""
        self._table.write(blind)

    def finish(
        self,
        count: int,
        out: torch.Tensor,
        made: torch.Tensor | None,
        lse: torch.Tensor | None,
        log2: torch.Tensor | None,
    ) -> None:
        """count: rows to launch for. made: where the rows are, None where they are in `out`. log2: dense."""
        _, heads, dim = out.shape
        launch(
            finish_rows,
            (count,),
            table=self._table.entries,
            made=made,
            out=out,
            out_row=out.stride(0),
            log2=log2,
            lse=lse,
            lse_row=0 if lse is None else lse.stride(0),
            heads=heads,
            elements=heads * dim,
            COPY=made is not None,
            BASE2=log2 is not None,
            LSE=lse is not None,
            HEADS=triton.next_power_of_2(heads),
            BLOCK=1024,
        )
