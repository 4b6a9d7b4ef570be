"""Which queries of a batch are computed together, and which keys they walk over. Host arrays only.

A group holds n queries of each of R requests. Requests with few queries and similar numbers of keys share a group, so
that a batch of decode steps is a few large products; of a long prefill, a group is a run of rows of one request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from opsocket.operators import AttentionBatch, AttentionSpec

_SHARED_QUERIES = 8  # requests of more queries are not worth padding
_SCORE_ROWS = 256  # of one KV head: n queries times the query heads that read it
_KEY_ELEMENTS = 1 << 18  # of a tile of K or V, over the requests and heads of a group: a megabyte of f32
_KEY_TILE = (64, 512)  # fewest and most keys of a tile


@dataclass(frozen=True, eq=False)
class Queries:
    """n queries of each of R requests, and the span of keys that any of them sees.

    rows i64[R, n] of q. positions i64[R, n]. first_key, span i64[R]: the keys from first_key on, span of them.
    first_position i64[R]: where first_key sits. order i64[R, n]: number of each query within its request.
    history i64[R]: keys before this one, counted from first_key, are not subject to a tree mask.
    """

    requests: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    order: np.ndarray
    first_key: np.ndarray
    first_position: np.ndarray
    span: np.ndarray
    history: np.ndarray

    def tiles(self, spec: AttentionSpec) -> Iterator[tuple[int, int, bool]]:
        """Runs of keys [start, stop), counted from `first_key`, and whether any key of one is hidden from any query."""
        low, high = _KEY_TILE
        step = min(high, max(low, _KEY_ELEMENTS // (len(self.requests) * _key_width(spec))))
        longest, shortest = int(self.span.max()), int(self.span.min())
        left, right = window(spec)
        leftmost, rightmost = self.positions.min(1), self.positions.max(1)
        for start in range(0, longest, step):
            stop = min(start + step, longest)
            hidden = stop > shortest
            if left is not None:
                hidden |= bool((self.first_position + start < rightmost - left).any())
            if right is not None:
                hidden |= bool((self.first_position + stop - 1 > leftmost + right).any())
            if spec.mask == "tree":
                hidden |= bool((stop > self.history).any())
            yield start, stop, hidden


def group_queries(batch: AttentionBatch, spec: AttentionSpec) -> Iterator[Queries]:
    """Every query of a batch in exactly one group."""
    q_indptr = np.asarray(batch.q_indptr, np.int64)
    q_lens = np.diff(q_indptr)
    sharing = np.flatnonzero((q_lens > 0) & (q_lens <= _SHARED_QUERIES)) if spec.mask != "tree" else np.array([], int)
    for n in np.unique(q_lens[sharing]):
        alike = [_queries(batch, spec, int(r), 0, int(n)) for r in sharing[q_lens[sharing] == n]]
        yield from _merge_similar(sorted(alike, key=lambda q: int(q.span[0])), spec)
    step = max(1, _SCORE_ROWS // spec.group)
    for request in np.setdiff1d(np.flatnonzero(q_lens), sharing):
        for start in range(0, int(q_lens[request]), step):
            yield _queries(batch, spec, int(request), start, min(start + step, int(q_lens[request])))


def _queries(batch: AttentionBatch, spec: AttentionSpec, request: int, start: int, stop: int) -> Queries:
    """Queries [start, stop) of one request."""
    first_row, q_len = int(batch.q_indptr[request]), int(batch.q_indptr[request + 1] - batch.q_indptr[request])
    kv_len = int(batch.kv_lens[request])
    kv_start = int(batch.kv_start if isinstance(batch.kv_start, int) else batch.kv_start[request])
    order = np.arange(start, stop, dtype=np.int64)
    if batch.q_positions is not None:
        positions = np.asarray(batch.q_positions, np.int64)[first_row + order]
    else:
        positions = order + int(kv_start + kv_len - q_len if batch.q_start is None else batch.q_start[request])
    left, right = window(spec)
    first = 0 if left is None else max(0, int(positions.min()) - left - kv_start)
    last = kv_len if right is None else min(kv_len, int(positions.max()) + right - kv_start + 1)
    return Queries(
        requests=np.array([request]),
        rows=(first_row + order)[None],
        positions=positions[None],
        order=order[None],
        first_key=np.array([first]),
        first_position=np.array([kv_start + first]),
        span=np.array([max(0, last - first)]),
        history=np.array([kv_len - q_len - first]),
    )


def _merge_similar(queries: list[Queries], spec: AttentionSpec) -> Iterator[Queries]:
    """Groups of at most a factor of two between the spans; `queries` come with rising spans."""
    start, most = 0, max(1, _KEY_ELEMENTS // (_KEY_TILE[0] * _key_width(spec)))
    for i in range(1, len(queries) + 1):
        if i == len(queries) or i - start == most or queries[i].span[0] > 2 * queries[start].span[0]:
            run = queries[start:i]
            yield Queries(*(np.concatenate([getattr(q, name) for q in run]) for name in Queries.__dataclass_fields__))
            start = i


def _key_width(spec: AttentionSpec) -> int:
    """Elements of one key of every KV head, or one value where that is wider."""
    return spec.num_kv_heads * max(spec.head_dim_qk, spec.head_dim_vo)


def window(spec: AttentionSpec) -> tuple[int | None, int | None]:
    """How far a query sees to the left and to the right; None: without end."""
    return spec.window_left, 0 if spec.mask == "causal" else spec.window_right
