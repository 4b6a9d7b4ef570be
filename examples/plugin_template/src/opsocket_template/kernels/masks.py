"""Which queries are computed together, which keys they look at, and which of these they see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from opsocket.operators import AttentionBatch, AttentionSpec, CacheSpec

_QUERIES = 128  # of a tile: bounds the memory for scores, [Hq, queries, keys]


@dataclass(frozen=True, eq=False)
class Tile:
    """Some consecutive queries of one request, and the keys between the first and the last that any of them sees.

    rows: of q. positions i64[n]: of the queries. key_positions i64[S]. source i64[S]: where the keys lie, slots of a
    cache or rows of contiguous k and v. tree_bits i64[n, new]: which bit of `tree_mask` says whether a query sees each
    of the last `new` keys; None without a tree.
    """

    rows: slice
    positions: np.ndarray
    key_positions: np.ndarray
    source: np.ndarray
    tree_bits: np.ndarray | None

    @property
    def distance(self) -> np.ndarray:
        """i64[n, S]: key position less query position."""
        return self.key_positions - self.positions[:, None]

    def visible(self, spec: AttentionSpec, tree_mask: np.ndarray | None) -> np.ndarray:
        """bool[n, S]: what each query sees."""
        distance, (left, right) = self.distance, _window(spec)
        seen = np.ones(distance.shape, bool)
        if left is not None:
            seen &= distance >= -left
        if right is not None:
            seen &= distance <= right
        if self.tree_bits is not None:
            bits = tree_mask[self.tree_bits >> 3] >> (self.tree_bits & 7).astype(np.uint8)
            seen[:, seen.shape[1] - bits.shape[1] :] &= (bits & 1).astype(bool)
        return seen


def tiles(batch: AttentionBatch, spec: AttentionSpec, cache: CacheSpec | None) -> Iterator[Tile]:
    """Every query of a batch in exactly one tile. Rows past q_indptr[B] are padding, and in none."""
    for request in range(len(batch.kv_lens)):
        first, last = (int(row) for row in batch.q_indptr[request : request + 2])
        for start in range(first, last, _QUERIES):
            yield _tile(batch, spec, cache, request, slice(start, min(start + _QUERIES, last)))


def _tile(batch: AttentionBatch, spec: AttentionSpec, cache: CacheSpec | None, request: int, rows: slice) -> Tile:
    first, last = (int(row) for row in batch.q_indptr[request : request + 2])
    kv_len, q_len = int(batch.kv_lens[request]), last - first
    kv_start = int(np.broadcast_to(batch.kv_start, len(batch.kv_lens))[request])
    order = np.arange(rows.start, rows.stop) - first
    if batch.q_positions is not None:
        positions = np.asarray(batch.q_positions[rows], np.int64)
    else:
        positions = order + int(kv_start + kv_len - q_len if batch.q_start is None else batch.q_start[request])
    left, right = _window(spec)
    low = 0 if left is None else max(0, int(positions.min()) - left - kv_start)
    high = kv_len if right is None else min(kv_len, int(positions.max()) + right - kv_start + 1)
    keys = np.arange(low, max(low, high))
    tree_bits = None
    if spec.mask == "tree":
        new = keys[keys >= kv_len - q_len] - (kv_len - q_len)
        tree_bits = 8 * int(batch.mask_indptr[request]) + order[:, None] * q_len + new
    return Tile(rows, positions, kv_start + keys, _source(batch, cache, request, keys), tree_bits)


def _source(batch: AttentionBatch, cache: CacheSpec | None, request: int, keys: np.ndarray) -> np.ndarray:
    if cache is None:
        return int(batch.kv_indptr[request]) + keys
    blocks = np.asarray(batch.block_table[request], np.int64)[keys // cache.block_size]
    return blocks * cache.block_size + keys % cache.block_size


def _window(spec: AttentionSpec) -> tuple[int | None, int | None]:
    """How far a query sees to the left and to the right; None: without end."""
    return spec.window_left, 0 if spec.mask == "causal" else spec.window_right
