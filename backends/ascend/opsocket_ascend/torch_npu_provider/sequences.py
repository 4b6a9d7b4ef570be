"""A batch as `npu_fused_infer_attention_score` can be told of it: sequences whose queries are the last of their keys.

The operator aligns queries and keys at the end of a sequence. A batch of ours says more: where queries stand, keys
after the last of them, queries that see nothing. All of it becomes sequences of the operator's kind, which share pages:
a request is cut where its queries do not follow one another, and where the operator takes no more of them. A query that
sees no key is not given to it at all.

A window is the operator's band, which it leaves out where a sequence has one query. Such a query is given twice, the
first time as the one before it. Pages that lie wholly to the left of a sequence's window are left out of its table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from opsocket.cache import expand_block_table
from opsocket.operators import AttentionBatch, AttentionSpec, CacheSpec, Reason
from opsocket_ascend.layouts import KERNEL_BLOCK

MOST_SEQUENCES: Final = 65536


@dataclass(frozen=True, eq=False)
class Sequences:
    """q_ends, kv_lens: rows of q up to each sequence's end, and its keys. table i32[n, W]: blocks of 128 tokens.

    given i64[R]: the rows of q that the operator gets; None: the first q_ends[-1]. wanted i64[T]: which of the rows
    that it returns count; None: all. written i64[T]: the rows of the output that these are; None: the first. empty
    i64[E]: rows of queries that see no key. is_masked: whether some sequence has several queries, under a mask.
    """

    q_ends: list[int]
    kv_lens: list[int]
    table: np.ndarray
    given: np.ndarray | None
    wanted: np.ndarray | None
    written: np.ndarray | None
    empty: np.ndarray
    is_masked: bool


def refusals(batch: AttentionBatch, spec: AttentionSpec) -> tuple[Reason, ...]:
    """Why a batch can't be said in such sequences, whatever its request; empty when it can."""
    if not batch.host_exact:
        return (Reason("host_exact", "batch.host_exact", False, True),)
    if spec.window_left is not None:
        for at, counts in enumerate(_counts(batch)):
            if counts.size and counts.max() > batch.kv_lens[at]:
                got = f"request {at}: {int(counts.max() - batch.kv_lens[at])} past its keys"
                return (Reason("window", "batch.q_start", got, "queries at keys, where there is a window"),)
    return ()


def sequences(batch: AttentionBatch, spec: AttentionSpec, cache: CacheSpec, longest: int | None) -> Sequences:
    """A batch that `refusals` has nothing against. longest: queries of one sequence at most."""
    causal, left = spec.mask == "causal", spec.window_left
    lens = np.asarray(batch.kv_lens, np.int64)
    parts: list[np.ndarray] = []  # per request: its number, first row, queries and keys of each sequence
    empty: list[np.ndarray] = []
    for at, counts in enumerate(_counts(batch)):
        if not counts.size:
            continue
        row = int(batch.q_indptr[at])
        counts = np.minimum(counts, lens[at]) if causal else np.full(len(counts), lens[at])
        empty.append(row + np.flatnonzero(counts <= 0))
        seeing = np.flatnonzero(counts > 0)
        if seeing.size:
            parts.append(_cut(at, row, counts, seeing, longest, causal))
    cut = np.concatenate([np.empty((0, 4), np.int64), *parts])
    owner, rows, q_lens, kv_lens = cut.T
    dropped = np.zeros_like(kv_lens)
    if left is not None:
        dropped = np.maximum(kv_lens - q_lens - left, 0) // KERNEL_BLOCK
        kv_lens = kv_lens - dropped * KERNEL_BLOCK
    twice = (q_lens == 1) & (kv_lens > left + 1) if left is not None else np.zeros(len(cut), bool)
    given = _ranges(rows, q_lens)
    wanted = None
    if twice.any():
        copies = np.repeat(1 + twice, q_lens)
        wanted = np.cumsum(copies) - 1
        given, written = np.repeat(given, copies), given
        q_lens = q_lens + twice
    else:
        written = given
    count = int(batch.q_indptr[-1])
    whole = len(written) == count
    empty_rows = np.concatenate([np.empty(0, np.int64), *empty])
    return Sequences(
        np.cumsum(q_lens).tolist(),
        kv_lens.tolist(),
        _table(batch, cache, lens, owner, dropped, kv_lens),
        None if whole and wanted is None else given,
        wanted,
        None if whole else written,
        empty_rows,
        bool(causal and (q_lens > 1).any()),
    )


def _counts(batch: AttentionBatch) -> list[np.ndarray]:
    """Per request i64[n]: keys up to each query's position, were there that many; 0 or less: none."""
    starts = np.asarray(batch.q_indptr, np.int64)
    kv_start = np.broadcast_to(np.asarray(batch.kv_start, np.int64), (len(starts) - 1,))
    found = []
    for at in range(len(starts) - 1):
        n = int(starts[at + 1] - starts[at])
        if batch.q_positions is not None:
            positions = np.asarray(batch.q_positions[starts[at] : starts[at + 1]], np.int64)
            found.append(positions - kv_start[at] + 1)
        else:
            first = int(batch.kv_lens[at]) - n
            if batch.q_start is not None:
                first = int(batch.q_start[at]) - int(kv_start[at])
            found.append(first + 1 + np.arange(n))
    return found


def _cut(at: int, row: int, counts: np.ndarray, seeing: np.ndarray, longest: int | None, causal: bool) -> np.ndarray:
    """i64[n, 4] of one request: its number, and first row, queries and keys of each sequence that it becomes."""
    apart = np.diff(seeing) != 1
    if causal:
        apart |= np.diff(counts[seeing]) != 1
    starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
    stops = np.concatenate([starts[1:], [len(seeing)]])
    if longest is not None:
        pieces = -(-(stops - starts) // longest)
        inside = _ranges(np.zeros_like(pieces), pieces) * longest
        starts, ends = np.repeat(starts, pieces) + inside, np.repeat(stops, pieces)
        stops = np.minimum(starts + longest, ends)
    number = np.full(len(starts), at)
    return np.stack([number, row + seeing[starts], stops - starts, counts[seeing[stops - 1]]], 1)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each, joined."""
    before = np.cumsum(lengths) - lengths
    joined: np.ndarray = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return joined


def _table(
    batch: AttentionBatch,
    cache: CacheSpec,
    lens: np.ndarray,
    owner: np.ndarray,
    dropped: np.ndarray,
    kv_lens: np.ndarray,
) -> np.ndarray:
    """i32[n, W]: the blocks of each sequence. What a batch names past a request's keys may be any number: 0 here."""
    assert batch.block_table is not None
    table = np.asarray(batch.block_table)
    held = -(-lens // cache.block_size)
    table = np.where(np.arange(table.shape[1]) < held[:, None], table, 0)
    blocks = expand_block_table(table, cache.block_size, KERNEL_BLOCK)
    used = -(-kv_lens // KERNEL_BLOCK)
    columns = np.arange(max(1, int(used.max(initial=0))))
    at = np.where(columns < used[:, None], dropped[:, None] + columns, 0)
    found: np.ndarray = np.where(columns < used[:, None], blocks[owner[:, None], at], 0)
    return found.astype(np.int32)
