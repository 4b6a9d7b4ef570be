"""What attention kernels get wrong about which keys a query sees: masks, windows, positions, trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket_conformance.power.broken import asks, batch, both, fault, has, stages
from opsocket_conformance.power.plain_attention import Bools, Ints, Row, Stages


def _masked(mask: str) -> Callable[[Request], bool]:
    return lambda request: getattr(request.spec, "mask", "") == mask


def _top_left(self: Stages, number: int, q_len: int, kv_len: int, length: int) -> tuple[Ints, Ints]:
    _, key = Stages.positions(self, number, q_len, kv_len, length)
    return key[:1].sum() + np.arange(q_len), key


def _never_before_the_first(self: Stages, number: int, q_len: int, kv_len: int, length: int) -> tuple[Ints, Ints]:
    query, key = Stages.positions(self, number, q_len, kv_len, length)
    return np.maximum(query, key[:1].sum()), key


def _window_from_the_last_key(self: Stages, row: Row) -> Bools:
    left = self.spec.window_left
    if left is None:
        return Stages.visible(self, row)
    return both(Stages.visible(_without_left(self), row), np.arange(len(row.key)) >= row.kv_len - 1 - left)


def _window_by_whole_pages(self: Stages, row: Row) -> Bools:
    """Pages that the window touches count as a whole."""
    left, cache = self.spec.window_left, self.request.cache
    if left is None or cache is None:
        return Stages.visible(self, row)
    start = np.maximum(row.query - left - row.key[:1].sum(), 0) // cache.block_size * cache.block_size
    return both(Stages.visible(_without_left(self), row), np.arange(len(row.key)) >= start[:, None])


def _without_left(self: Stages) -> Stages:
    other = type(self)(self.plan)
    other.spec = replace(self.spec, window_left=None)
    return other


def _window_of_the_first_query(self: Stages, row: Row) -> Bools:
    left = self.spec.window_left
    if left is None:
        return Stages.visible(self, row)
    return both(Stages.visible(_without_left(self), row), row.key >= row.query[0] - left)


_WINDOWED, _TREE = has("window_left"), _masked("tree")
_MASKS: Final = (
    fault("not causal", "masks", "The mask is full.", where=_masked("causal"), request=asks(mask=lambda s: "full")),
    fault(
        "causal, with the next key too",
        "masks",
        "<= where < was meant.",
        "batch=decode",
        where=_masked("causal"),
        kernel=stages(visible=lambda s, row: Stages.visible(s, replace(row, query=row.query + 1))),
    ),
    fault(
        "causal, without the own key",
        "masks",
        "< where <= was meant.",
        where=_masked("causal"),
        kernel=stages(visible=lambda s, row: Stages.visible(s, replace(row, query=row.query - 1))),
    ),
    fault(
        "causal, aligned top left",
        "masks",
        "Query 0 sees key 0 only, whatever came before it.",
        kernel=stages(positions=_top_left),
    ),
    fault(
        "more queries than keys, clamped",
        "masks",
        "Queries before the first key are moved to it.",
        "batch=short",
        kernel=stages(positions=_never_before_the_first),
    ),
    fault(
        "causal in a full mask",
        "masks",
        "A causal kernel serves every mask.",
        "mask=full",
        where=_masked("full"),
        request=asks(mask=lambda s: "causal"),
    ),
    fault(
        "window one longer",
        "masks",
        "window_left is taken for sliding_window - 1 twice.",
        "left=",
        where=_WINDOWED,
        request=asks(window_left=lambda s: s.window_left + 1),
    ),
    fault(
        "window one shorter",
        "masks",
        "window_left is taken for sliding_window.",
        "left=",
        where=_WINDOWED,
        request=asks(window_left=lambda s: max(s.window_left - 1, 0)),
    ),
    fault(
        "window ignored",
        "masks",
        "window_left never reaches the kernel.",
        "left=",
        request=asks(window_left=lambda s: None),
    ),
    fault(
        "window_right one longer",
        "masks",
        "< where <= was meant.",
        "right=",
        "mask=full",
        where=lambda request: has("window_right")(request) and _masked("full")(request),
        request=asks(window_right=lambda s: s.window_right + 1),
    ),
    fault(
        "window_right ignored",
        "masks",
        "window_right never reaches the kernel.",
        "right=",
        "mask=full",
        request=asks(window_right=lambda s: None),
    ),
    fault(
        "window from the last key",
        "masks",
        "All queries share the window of the last one.",
        "left=",
        where=_WINDOWED,
        kernel=stages(visible=_window_from_the_last_key),
    ),
    fault(
        "window of the first query",
        "masks",
        "All queries share the left edge of the first one.",
        "left=",
        where=_WINDOWED,
        kernel=stages(visible=_window_of_the_first_query),
    ),
    fault(
        "window by whole pages",
        "masks",
        "The window skips pages, and masks nothing within one.",
        "left=",
        where=_WINDOWED,
        kernel=stages(visible=_window_by_whole_pages),
    ),
    fault(
        "kv_start ignored", "masks", "Key 0 is at position 0.", "batch=shifted", batch=lambda b: replace(b, kv_start=0)
    ),
    fault(
        "kv_start of the first request for all",
        "masks",
        "kv_start is read without the request.",
        "batch=shifted",
        batch=batch("kv_start", lambda a: a if a.ndim == 0 else np.full_like(a, a[0])),
    ),
    fault(
        "q_start ignored",
        "masks",
        "The last query is at the last key.",
        "batch=decode",
        batch=lambda b: replace(b, q_start=None),
    ),
)


def _bits(order: Callable[[Bools], Any]) -> Any:
    return stages(tree_bits=lambda s, row, count: order(Stages.tree_bits(s, row, count)))


def _big_endian_bits(self: Stages, row: Row, count: int) -> Bools:
    assert row.operands.tree is not None
    assert self.batch.mask_indptr is not None
    packed = row.operands.tree[int(self.batch.mask_indptr[row.number]) :]
    return np.unpackbits(packed)[: count * count].reshape(count, count).astype(bool)


def _bits_without_gaps(self: Stages, row: Row, count: int) -> Bools:
    """Requests' bits are taken to follow each other."""
    assert row.operands.tree is not None
    before = int((np.diff(self.batch.q_indptr)[: row.number].astype(np.int64) ** 2).sum())
    bits = np.unpackbits(row.operands.tree, bitorder="little")[before : before + count * count]
    return bits.reshape(count, count).astype(bool)


def _history_masked(self: Stages, row: Row) -> Bools:
    seen = Stages.visible(self, row)
    seen[:, : row.kv_len - len(row.query)] = False
    return seen


_TREES: Final = (
    fault(
        "tree taken for a chain",
        "masks",
        "The tree mask is not read.",
        "mask=tree",
        where=_TREE,
        kernel=stages(tree_bits=lambda s, row, count: np.tri(count, dtype=bool)),
    ),
    fault(
        "tree transposed",
        "masks",
        "Bits are read column by column.",
        "mask=tree",
        where=_TREE,
        kernel=_bits(lambda bits: bits.T),
    ),
    fault(
        "tree bits from the other end",
        "masks",
        "The most significant bit comes first.",
        "mask=tree",
        where=_TREE,
        kernel=stages(tree_bits=_big_endian_bits),
    ),
    fault(
        "tree without gaps between requests",
        "masks",
        "mask_indptr is ignored.",
        "mask=tree",
        where=_TREE,
        kernel=stages(tree_bits=_bits_without_gaps),
    ),
    fault(
        "tree hides the history",
        "masks",
        "The mask is taken to cover all keys.",
        "mask=tree",
        where=_TREE,
        kernel=stages(visible=_history_masked),
    ),
    fault(
        "parents do not see themselves",
        "masks",
        "The diagonal is dropped.",
        "mask=tree",
        where=_TREE,
        kernel=_bits(lambda bits: bits & ~np.eye(len(bits), dtype=bool)),
    ),
    fault(
        "q_positions ignored",
        "masks",
        "Siblings of a tree are given positions in a row.",
        "mask=tree",
        "alibi=1",
        where=lambda request: _TREE(request) and has("window_left", "window_right", "alibi")(request),
        kernel=stages(positions=lambda s, number, q_len, kv_len, length: _in_a_row(s, number, q_len, kv_len, length)),
    ),
)


def _in_a_row(self: Stages, number: int, q_len: int, kv_len: int, length: int) -> tuple[Ints, Ints]:
    _, key = Stages.positions(self, number, q_len, kv_len, length)
    return key[:1].sum() + kv_len - q_len + np.arange(q_len), key


FAULTS: Final = (*_MASKS, *_TREES)
