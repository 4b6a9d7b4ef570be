"""A batch as FlashInfer's wrappers take it. Host arrays only, so that all of it can be proven where no GPU is.

FlashInfer's page table (its documentation, "KV-Cache Layout in FlashInfer"): the pages of request i are
`indices[kv_indptr[i] : kv_indptr[i + 1]]`, all full but the last one, which has `last_page_len[i]` tokens. Its masks
count from the end: query i of q_len stands at key kv_len - q_len + i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opsocket.operators import AttentionBatch, AttentionSpec

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Masking = Literal["ends", "all", "bits"]
"""Which keys queries see. ends: by the spec's mask and left window, positions counted from the end; all: every key;
bits: those whose bit is set."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The queries of a batch, in their order. request: whose they are. first, last: of the keys that each may see by
    position, counted from key 0 of its request, both inclusive; none where first > last. kv_lens i64[B]: keys of each
    request, without those after the last that a causal query sees. is_aligned: whether the last query of each request
    stands at the last of these keys, and those before it at those before."""

    request: Longs
    first: Longs
    last: Longs
    kv_lens: Longs
    is_aligned: bool

    @property
    def blind(self) -> Bools:
        """Of each, whether it sees nothing. Of a tree: whether its window alone says so."""
        return self.first > self.last


@dataclass(frozen=True, eq=False)
class Pages:
    """kv_indptr i32[B + 1], indices i32[pages], last_page_len i32[B], kv_lens i64[B]; skipped i64[B]: keys left out at
    the beginning, in whole pages, since no query of the request sees one of them."""

    q_indptr: Ints
    kv_indptr: Ints
    indices: Ints
    last_page_len: Ints
    kv_lens: Longs
    skipped: Longs


def rows(batch: AttentionBatch, spec: AttentionSpec) -> Rows:
    """What each query may see by its position: window and causality; of a tree, the window, over all keys."""
    q_indptr, kv_lens = np.asarray(batch.q_indptr, np.int64), np.asarray(batch.kv_lens, np.int64)
    q_lens = np.diff(q_indptr)
    request = np.repeat(np.arange(len(q_lens)), q_lens)
    within = np.arange(len(request)) - q_indptr[:-1][request]
    kv_start = np.broadcast_to(np.asarray(batch.kv_start, np.int64), q_lens.shape)
    if batch.q_positions is not None:
        at = np.asarray(batch.q_positions, np.int64)[: len(request)] - kv_start[request]
    elif batch.q_start is not None:
        at = (np.asarray(batch.q_start, np.int64) - kv_start)[request] + within
    else:
        at = (kv_lens - q_lens)[request] + within
    right = 0 if is_causal(spec) else spec.window_right
    if is_causal(spec):
        farthest = np.full(len(q_lens), -1)
        np.maximum.at(farthest, request, at)
        kv_lens = np.minimum(kv_lens, farthest + 1)
    last, first = (kv_lens - 1)[request], np.zeros_like(at)
    if right is not None:
        last = np.minimum(last, at + right)
    if spec.window_left is not None:
        first = np.maximum(first, at - spec.window_left)
    is_aligned = (at == (kv_lens - q_lens)[request] + within) | (kv_lens[request] == 0)
    return Rows(request, first, last, kv_lens, bool(is_aligned.all()))


def masking(spec: AttentionSpec, found: Rows) -> Masking:
    """How FlashInfer can be told which keys queries see."""
    if spec.mask == "tree":
        return "bits"
    if found.is_aligned:
        return "ends"
    sees_all = (found.first <= 0) & (found.last >= (found.kv_lens - 1)[found.request])
    return "all" if bool(sees_all.all()) else "bits"


def is_causal(spec: AttentionSpec) -> bool:
    """Whether a query sees nothing after itself."""
    return spec.mask == "causal" or (spec.mask == "full" and spec.window_right == 0)


def pages(batch: AttentionBatch, spec: AttentionSpec, found: Rows, block_size: int, size: int) -> Pages:
    """The page table of a batch, with requests that have neither queries nor pages up to `size`.

    Blocks wholly left of every window are left out: their entries may be any block, whose values no product may meet.
    """
    table, q_indptr = np.asarray(batch.block_table), np.asarray(batch.q_indptr, np.int64)
    count = len(q_indptr) - 1
    kv_lens = np.where(np.diff(q_indptr) > 0, found.kv_lens, 0)
    lowest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(lowest, found.request, found.first)
    most = kv_lens - (np.diff(q_indptr) if spec.mask == "tree" else 1)
    skipped = np.maximum(np.minimum(lowest, most), 0) // block_size * block_size
    kv_lens = kv_lens - skipped
    held, before = -(-kv_lens // block_size), skipped // block_size
    column = np.arange(table.shape[1])
    taken = (column >= before[:, None]) & (column < (before + held)[:, None])
    last = np.where(held > 0, kv_lens - (held - 1) * block_size, 0)
    more = size - count
    return Pages(
        np.pad(q_indptr, (0, more), "edge").astype(np.int32),
        np.pad(np.concatenate(([0], np.cumsum(held))), (0, more), "edge").astype(np.int32),
        table[taken].astype(np.int32),
        np.pad(last, (0, more)).astype(np.int32),
        np.pad(kv_lens, (0, more)),
        np.pad(skipped, (0, more)),
    )


def decode_pages(batch: AttentionBatch, spec: AttentionSpec, found: Rows, block_size: int) -> Pages:
    """The page table of a batch of at most one query each, without the requests that have none. No window."""
    count, kv_lens = len(found.request), found.kv_lens[found.request]
    asking = AttentionBatch(np.arange(count + 1), kv_lens, np.asarray(batch.block_table)[found.request])
    there = Rows(np.arange(count), np.zeros_like(kv_lens), kv_lens - 1, kv_lens, True)
    return pages(asking, spec, there, block_size, count)


def ragged(batch: AttentionBatch, found: Rows) -> tuple[Ints, Ints]:
    """q_indptr and kv_indptr, i32[2 B + 1] each, over contiguous keys: FlashInfer's requests follow each other without
    a gap, so that what lies between the keys of two of ours is a request of its own, without queries."""
    starts = np.asarray(batch.kv_indptr, np.int64)
    kv_indptr = np.empty(2 * len(found.kv_lens) + 1, np.int64)
    kv_indptr[0::2], kv_indptr[1::2] = starts, starts[:-1] + found.kv_lens
    q_indptr = np.repeat(np.asarray(batch.q_indptr, np.int64), 2)[1:]
    return q_indptr.astype(np.int32), kv_indptr.astype(np.int32)


def mask_starts(q_indptr: npt.NDArray[Any], kv_lens: Longs) -> Longs:
    """The first byte of each request's mask, i64[B + 1]: q_len x kv_len bits, row-major, least significant first."""
    bits = np.diff(np.asarray(q_indptr, np.int64)) * kv_lens
    return np.concatenate(([0], np.cumsum(-(-bits // 8))))


def packed(found: Rows, made: Pages) -> npt.NDArray[np.uint8]:
    """The bits of all requests, by positions alone, over the keys that the pages hold."""
    asking = np.flatnonzero(np.diff(made.q_indptr))
    parts = [seen(found, made.q_indptr, request)[:, made.skipped[request] :] for request in asking]
    return np.concatenate([np.empty(0, np.uint8), *(np.packbits(part, bitorder="little") for part in parts)])


def seen(found: Rows, q_indptr: npt.NDArray[Any], request: int) -> Bools:
    """bool [q_len, kv_len]: whether each query of a request may see each key by position."""
    mine, key = slice(int(q_indptr[request]), int(q_indptr[request + 1])), np.arange(found.kv_lens[request])
    visible: Bools = (key >= found.first[mine, None]) & (key <= found.last[mine, None])
    return visible
