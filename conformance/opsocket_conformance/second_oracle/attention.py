"""Attention as ONNX primitives: all requests of a batch in one dense product, kept apart by the mask.

A request is not a loop here but a number that queries and keys carry, and every rule of visibility is one comparison
of these numbers and of positions. Written from docs/interface.md alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import AttentionSpec
from opsocket_conformance.operators.attention.oracle import Problem
from opsocket_conformance.second_oracle.answer import U_EXP, U_TANH, Float64, Part, U, near
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Tensor, Writer
from opsocket_conformance.tolerance import growth

Int64 = npt.NDArray[np.int64]

_DENSE: Final = 1 << 16
"""Logits per run: requests are joined up to this, so that little is spent on pairs that no mask lets through."""
_ROWS: Final = 1 << 22
"""Logits per run of one long request, whose queries are split beyond it."""


@dataclass(frozen=True)
class _Kind:
    """Which terms a graph has; their values are inputs."""

    mask: str
    left: bool
    right: bool
    softcap: bool
    alibi: bool
    sinks: bool


def attention(evaluate: Evaluator, problem: Problem) -> tuple[Part, ...]:
    """out f64[T, Hq, Dvo] and LSE f64[T, Hq] of the rows before q_indptr[B]."""
    spec, rows = problem.spec, int(problem.batch.q_indptr[-1])
    out, inner = np.zeros((2, rows, spec.num_q_heads, spec.head_dim_vo))
    lse, inner_lse = np.zeros((2, rows, spec.num_q_heads))
    graph, shared = _graph(_kind(spec)), _shared(problem)
    for where, inputs in _runs(problem):
        stages = _Stages(*evaluate(graph, **shared, **inputs))
        out[where], lse[where] = stages.out, stages.lse
        inner[where], inner_lse[where] = _inner(spec, inputs, stages)
    return near("out", out, inner), near("lse", lse, inner_lse)


def _kind(spec: AttentionSpec) -> _Kind:
    window = spec.window_left is not None, spec.window_right is not None
    return _Kind(spec.mask, *window, spec.softcap is not None, spec.alibi, spec.sinks)


@cache
def _graph(kind: _Kind) -> Graph:
    """S keys, T queries, of all requests. Order: scale, softcap, ALiBi, mask."""
    g = Writer()
    q, k, v = g.input("q", "f64"), g.input("k", "f64"), g.input("v", "f64")
    kv_head = g.input("kv_head", "i64")
    k, v = g("Gather", k, kv_head, axis=1), g("Gather", v, kv_head, axis=1)
    distance = g.input("q_position", "i64").unsqueeze(1) - g.input("k_position", "i64").unsqueeze(0)

    raw = g("MatMul", g("Transpose", q, perm=[1, 0, 2]), g("Transpose", k, perm=[1, 2, 0])) * g.input("scale", "f64")
    capped = raw
    if kind.softcap:
        cap = g.input("softcap", "f64")
        capped = cap * g("Tanh", raw / cap)
    logits = capped
    if kind.alibi:
        logits = capped - g.input("slopes", "f64").unsqueeze(1, 2) * g("Abs", distance).cast("f64")
    logits = g("Where", _visible(g, kind, distance), logits, -np.inf)

    top = g("ReduceMax", logits, [-1], keepdims=1)
    if kind.sinks:
        sink = g.input("sinks", "f64").unsqueeze(1, 2)
        top = g("Max", top, sink)
    top = g("Where", g("IsInf", top, dtype="bool"), 0.0, top)
    weights = g("Exp", logits - top)
    total = g("ReduceSum", weights, [-1], keepdims=1)
    if kind.sinks:
        total = total + g("Exp", sink - top)
    some = g("Where", total > 0.0, total, 1.0)
    out = g("MatMul", weights, g("Transpose", v, perm=[1, 0, 2])) / some
    lse = g("Log", total) + top
    return g.finish(
        out=g("Transpose", out, perm=[1, 0, 2]),
        lse=g("Transpose", g("Squeeze", lse, [2]), perm=[1, 0]),
        raw=raw,
        capped=capped,
        logits=logits,
        top=top,
        weights=weights,
        total=total,
    )


def _visible(g: Writer, kind: _Kind, distance: Tensor) -> Tensor:
    """bool[T, S]. distance: how far a key lies before a query."""
    visible = g.input("q_request", "i64").unsqueeze(1).equals(g.input("k_request", "i64").unsqueeze(0))
    if kind.mask == "causal":
        visible = visible & (distance >= 0)
    if kind.mask == "tree":
        visible = visible & _in_tree(g)
    if kind.left:
        visible = visible & (distance <= g.input("window_left", "i64"))
    if kind.right:
        visible = visible & (distance >= -g.input("window_right", "i64"))
    return visible


def _in_tree(g: Writer) -> Tensor:
    """History, or a set bit: bit row * q_len + column of the request's bytes, least significant first."""
    row, q_len = g.input("q_index", "i64").unsqueeze(1), g.input("q_len", "i64").unsqueeze(1)
    column = g.input("k_index", "i64").unsqueeze(0) - g.input("history", "i64").unsqueeze(1)
    is_new = (column >= 0) & (column < q_len)
    bit = g("Where", is_new, row * q_len + column, 0)
    byte = g(
        "Gather",
        g.input("tree_mask", "u8"),
        g("Where", is_new, g.input("mask_start", "i64").unsqueeze(1), 0) + bit // 8,
    )
    is_set = ((byte >> (bit % 8).cast("u8")) & 1).equals(1)
    return (column < 0) | (is_new & is_set)


def _shared(problem: Problem) -> dict[str, Any]:
    """Inputs that every run of a problem has."""
    spec = problem.spec
    values = {
        "kv_head": np.arange(spec.num_q_heads) // spec.group,
        "scale": np.float64(spec.scale),
        "softcap": None if spec.softcap is None else np.float64(spec.softcap),
        "window_left": None if spec.window_left is None else np.int64(spec.window_left),
        "window_right": None if spec.window_right is None else np.int64(spec.window_right),
        "slopes": problem.slopes if spec.alibi else None,
        "sinks": problem.sinks if spec.sinks else None,
        "tree_mask": problem.tree_mask if spec.mask == "tree" else None,
    }
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, eq=False)
class _Request:
    """One request of a batch. rows: of q. first: position of query 0."""

    number: int
    rows: slice
    kv_len: int
    kv_start: int
    first: int

    @property
    def q_len(self) -> int:
        return int(self.rows.stop - self.rows.start)


def _requests(problem: Problem) -> list[_Request]:
    batch = problem.batch
    found = []
    for number, keys in enumerate(problem.keys):
        rows = slice(int(batch.q_indptr[number]), int(batch.q_indptr[number + 1]))
        start = int(np.broadcast_to(batch.kv_start, len(problem.keys))[number])
        bottom_right = start + len(keys) - (rows.stop - rows.start)
        first = bottom_right if batch.q_start is None else int(batch.q_start[number])
        found.append(_Request(number, rows, len(keys), start, first))
    return found


def _runs(problem: Problem) -> Iterator[tuple[slice, dict[str, Any]]]:
    """The rows of each run, and its inputs."""
    heads: int = problem.spec.num_q_heads
    joined: list[_Request] = []

    def logits(requests: list[_Request]) -> int:
        return heads * sum(r.q_len for r in requests) * sum(r.kv_len for r in requests)

    for request in _requests(problem):
        if joined and logits([*joined, request]) > _DENSE:
            yield from _split(problem, joined)
            joined = []
        joined.append(request)
    yield from _split(problem, joined)


def _split(problem: Problem, joined: list[_Request]) -> Iterator[tuple[slice, dict[str, Any]]]:
    if not joined or joined[0].rows.start == joined[-1].rows.stop:
        return
    keys = sum(r.kv_len for r in joined)
    step = max(1, _ROWS // (problem.spec.num_q_heads * (keys + 1)))
    inputs = _inputs(problem, joined)
    first, stop = joined[0].rows.start, joined[-1].rows.stop
    for start in range(first, stop, step):
        rows = slice(start, min(start + step, stop))
        here = slice(rows.start - first, rows.stop - first)
        per_query = {name: inputs[name][here] for name in inputs if name not in ("k", "v") and name[:2] != "k_"}
        yield rows, {**inputs, **per_query}


def _inputs(problem: Problem, joined: list[_Request]) -> dict[str, Any]:
    """One number per query and per key for each thing that masks compare. The last key belongs to no request: ONNX
    leaves open what the largest of no logits is."""
    batch, spec = problem.batch, problem.spec

    def per_query(numbers: list[int]) -> Int64:
        return np.repeat(np.array(numbers, np.int64), [r.q_len for r in joined])

    def per_key(numbers: list[int], last: int) -> Int64:
        return np.append(np.repeat(np.array(numbers, np.int64), [r.kv_len for r in joined]), last)

    rows = slice(joined[0].rows.start, joined[-1].rows.stop)
    q_index = np.arange(rows.start, rows.stop) - per_query([r.rows.start for r in joined])
    k_index = np.concatenate([*(np.arange(r.kv_len) for r in joined), [0]]).astype(np.int64)
    position = q_index + per_query([r.first for r in joined])
    if batch.q_positions is not None:
        position = np.asarray(batch.q_positions[rows], np.int64)
    inputs: dict[str, Any] = {
        "q": problem.q[rows],
        "k": np.concatenate(
            [*(problem.keys[r.number] for r in joined), np.zeros((1, spec.num_kv_heads, spec.head_dim_qk))]
        ),
        "v": np.concatenate(
            [*(problem.values[r.number] for r in joined), np.zeros((1, spec.num_kv_heads, spec.head_dim_vo))]
        ),
        "q_request": per_query([r.number for r in joined]),
        "k_request": per_key([r.number for r in joined], -1),
        "q_position": position,
        "k_position": k_index + per_key([r.kv_start for r in joined], 0),
    }
    if spec.mask == "tree":
        assert batch.mask_indptr is not None
        inputs |= {
            "q_index": q_index,
            "k_index": k_index,
            "q_len": per_query([r.q_len for r in joined]),
            "history": per_query([r.kv_len - r.q_len for r in joined]),
            "mask_start": per_query([int(batch.mask_indptr[r.number]) for r in joined]),
        }
    return inputs


@dataclass(frozen=True, eq=False)
class _Stages:
    """out [T, Hq, Dvo], lse [T, Hq]; the rest [Hq, T, S], or [Hq, T, 1] for top and total."""

    out: Float64
    lse: Float64
    raw: Float64
    capped: Float64
    logits: Float64
    top: Float64
    weights: Float64
    total: Float64


def _inner(spec: AttentionSpec, inputs: dict[str, Any], stages: _Stages) -> tuple[Float64, Float64]:
    """T of docs/tolerance.md for out [T, Hq, Dvo] and LSE [T, Hq], every u being 2^-53."""
    q = np.abs(inputs["q"]).transpose(1, 0, 2)
    of_head = np.arange(spec.num_q_heads) // spec.group
    k, v = (inputs[name][:, of_head].transpose(1, 0, 2) for name in ("k", "v"))
    ref = stages.out.transpose(1, 0, 2)
    seen = np.isfinite(stages.logits)
    keys = seen.sum(axis=-1, keepdims=True)
    some = np.where(stages.total > 0, stages.total, 1.0)
    p = stages.weights / some
    sink = np.maximum(1 - p.sum(axis=-1, keepdims=True), 0.0) if spec.sinks else np.zeros_like(some)

    error = (growth(spec.head_dim_qk) + 2) * U * abs(spec.scale) * (q @ np.abs(k).swapaxes(1, 2)) + U * np.abs(
        stages.raw
    )
    if spec.softcap is not None:
        error = error * (1 - (stages.capped / spec.softcap) ** 2) + U_TANH * spec.softcap
    final = np.where(seen, stages.logits, 0.0)
    bias = final - stages.capped
    error = error + 2 * U * np.abs(bias) + U * np.abs(final) + 2 * U * np.abs(final - stages.top)
    delta = np.where(seen, np.expm1(error), 0.0)
    delta_sink = 2 * U * np.abs(np.log(np.maximum(sink, 1e-300)))

    # The sink is a key whose value is 0: it takes part in moments of v - ref by ref^2.
    p2 = p**2
    p_v, p_v2, p2_v2 = p @ np.abs(v), p @ v**2, p2 @ v**2
    spread = np.sqrt(np.maximum(p_v2 - ref**2, 0.0))
    p2_all = p2.sum(axis=-1, keepdims=True) + sink**2
    spread2 = np.sqrt(np.maximum(p2_v2 - 2 * ref * (p2 @ v) + ref**2 * p2_all, 0.0))
    jitter = np.sqrt((p * delta**2).sum(axis=-1, keepdims=True) + sink * delta_sink**2)
    sums = (growth(keys) + 3) * U
    inner = (
        U * np.abs(ref)
        + U * np.minimum(6 * np.sqrt(p2_v2), p_v)
        + U_EXP * np.minimum(6 * spread2, spread)
        + sums * (p_v + np.abs(ref))
        + jitter * spread
    )

    rises = 1 + np.log(np.maximum(keys, 1))
    shift = (p * delta).sum(axis=-1, keepdims=True) + sink * delta_sink
    inner_lse = shift + sums + rises * U_EXP + 4 * U * (np.abs(np.log(some)) + np.abs(stages.top))
    inner_lse = np.where(stages.total > 0, inner_lse, 0.0)[..., 0]
    return inner.transpose(1, 0, 2), inner_lse.T
