"""Attention as docs/interface.md pins them, one request at a time, nothing fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsocket.operators import AttentionBatch, AttentionSpec
from opsocket_conformance.guard import judge_only

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Problem:
    """One attention call on host arrays.

    q f64[T, Hq, Dqk]; keys[r] f64[kv_len, Hkv, Dqk] and values[r] f64[kv_len, Hkv, Dvo] of request r, as the operator
    sees them (dequantized); sinks, slopes f64[Hq] or None; tree_mask u8[bytes] or None. quantized: whether keys and
    values had to be dequantized.
    """

    spec: AttentionSpec
    batch: AttentionBatch
    q: Float64
    keys: Sequence[Float64]
    values: Sequence[Float64]
    sinks: Float64 | None = None
    slopes: Float64 | None = None
    tree_mask: npt.NDArray[np.uint8] | None = None
    quantized: bool = False


@dataclass(frozen=True, eq=False)
class Rows:
    """The stages of one request, from which both the result and its tolerance follow.

    Leading dimensions [Hkv, G, n] of n queries and G heads that share a KV head; last dimension the kv_len keys.
    raw: scale * q.k. magnitude: |scale| * sum |q||k|. capped: after softcap. bias: ALiBi. logits: all of it, -inf where
    masked. top: the largest of logits and sink (0 where neither is finite). weights: exp(logits - top). total: their
    sum, the sink's included. sink: the sink's weight. queries f64[Hkv, G, n, Dqk]; keys f64[Hkv, 1, Dqk, kv_len];
    values f64[Hkv, 1, kv_len, Dvo].
    """

    first_row: int
    raw: Float64
    magnitude: Float64
    capped: Float64
    bias: Float64
    logits: Float64
    top: Float64
    weights: Float64
    total: Float64
    sink: Float64
    queries: Float64
    keys: Float64
    values: Float64

    @property
    def probabilities(self) -> Float64:
        """weights / total; all 0 where nothing is visible."""
        return np.divide(self.weights, self.total, out=np.zeros_like(self.weights), where=self.total > 0)

    @property
    def out(self) -> Float64:
        return self.probabilities @ self.values

    @property
    def lse(self) -> Float64:
        """[Hkv, G, n]"""
        with np.errstate(divide="ignore"):
            return np.where(self.total > 0, np.log(self.total) + self.top, -np.inf)[..., 0]


def positions(problem: Problem, request: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of a request's queries [n] and keys [m]."""
    batch = problem.batch
    first, last = (int(i) for i in batch.q_indptr[request : request + 2])
    kv_len = int(batch.kv_lens[request])
    kv_start = batch.kv_start if isinstance(batch.kv_start, int) else int(batch.kv_start[request])
    key = kv_start + np.arange(kv_len, dtype=np.int64)
    if batch.q_positions is not None:
        return np.asarray(batch.q_positions[first:last], np.int64), key
    q_len = last - first
    q_start = kv_start + kv_len - q_len if batch.q_start is None else int(batch.q_start[request])
    return q_start + np.arange(q_len, dtype=np.int64), key


def visible(problem: Problem, request: int) -> Bool:
    """[n, m]: whether a query of the request sees a key."""
    spec = problem.spec
    query, key = positions(problem, request)
    distance = key[None, :] - query[:, None]
    seen = np.ones(distance.shape, bool)
    if spec.window_left is not None:
        seen &= distance >= -spec.window_left
    if spec.window_right is not None:
        seen &= distance <= spec.window_right
    if spec.mask == "causal":
        seen &= distance <= 0
    if spec.mask == "tree":
        history = len(key) - len(query)
        seen[:, history:] &= _tree_bits(problem, request, len(query))
    return seen


def _tree_bits(problem: Problem, request: int, q_len: int) -> Bool:
    assert problem.tree_mask is not None
    assert problem.batch.mask_indptr is not None
    start = int(problem.batch.mask_indptr[request])
    bits = np.empty((q_len, q_len), bool)
    for row in range(q_len):
        for column in range(q_len):
            byte, bit = divmod(row * q_len + column, 8)
            bits[row, column] = problem.tree_mask[start + byte] >> bit & 1
    return bits


def rows(problem: Problem) -> Iterator[Rows]:
    """The stages of every request that has queries, in order."""
    spec = problem.spec
    kv_heads, group = spec.num_kv_heads, spec.num_q_heads // spec.num_kv_heads

    def per_head(values: Float64 | None) -> Float64 | None:
        return None if values is None else values.reshape(kv_heads, group, 1, 1)

    sinks, slopes = per_head(problem.sinks), per_head(problem.slopes)
    for request in range(len(problem.batch.kv_lens)):
        first, last = (int(i) for i in problem.batch.q_indptr[request : request + 2])
        if first == last:
            continue
        q = problem.q[first:last].reshape(last - first, kv_heads, group, -1).transpose(1, 2, 0, 3)
        k = problem.keys[request].transpose(1, 2, 0)[:, None]
        v = problem.values[request].transpose(1, 0, 2)[:, None]
        raw = spec.scale * (q @ k)
        capped = raw if spec.softcap is None else spec.softcap * np.tanh(raw / spec.softcap)
        query, key = positions(problem, request)
        bias = np.zeros((1, 1, 1, 1)) if slopes is None else -slopes * np.abs(query[:, None] - key)
        logits = np.where(visible(problem, request), capped + bias, -np.inf)
        top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
        if sinks is not None:
            top = np.maximum(top, sinks)
        top = np.where(np.isfinite(top), top, 0.0)
        weights = np.exp(logits - top)
        sink = np.zeros_like(top) if sinks is None else np.exp(sinks - top)
        total = weights.sum(axis=-1, keepdims=True) + sink
        magnitude = abs(spec.scale) * (np.abs(q) @ np.abs(k))
        yield Rows(first, raw, magnitude, capped, bias, logits, top, weights, total, sink, q, k, v)


def token_major(per_row: Float64) -> Float64:
    """[Hkv, G, n, ...] to [n, Hq, ...]: the operator's order."""
    heads, group, count = per_row.shape[:3]
    return np.moveaxis(per_row, 2, 0).reshape(count, heads * group, *per_row.shape[3:])


@judge_only
def attention(problem: Problem) -> tuple[Float64, Float64]:
    """out f64[T, Hq, Dvo] and LSE f64[T, Hq] of all rows before q_indptr[B]."""
    spec, count = problem.spec, int(problem.batch.q_indptr[-1])
    out = np.zeros((count, spec.num_q_heads, spec.head_dim_vo))
    lse = np.full((count, spec.num_q_heads), -np.inf)
    for row in rows(problem):
        part = token_major(row.out)
        where = slice(row.first_row, row.first_row + len(part))
        out[where], lse[where] = part, token_major(row.lse)
    return out, lse
