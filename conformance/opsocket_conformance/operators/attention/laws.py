"""Laws that tie several attention calls together: what must not change when something that does not matter does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    Cache,
    CacheMoveSpec,
    MergeStatesSpec,
    MoveBatch,
    Ragged,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.findings import Float64, Host
from opsocket_conformance.operators import merge_states
from opsocket_conformance.operators.attention.batches import rows_of
from opsocket_conformance.operators.attention.knobs import Attention, judge
from opsocket_conformance.operators.attention.oracle import Problem, attention
from opsocket_conformance.operators.attention.scene import Scene, build, fill, page
from opsocket_conformance.operators.attention.tolerance import AttentionBounds, tolerance
from opsocket_conformance.tolerance import Bound

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AttentionLaw(Attention):
    """law: a name in `LAWS`; the other fields as in `Attention`."""

    name: ClassVar[str] = "attention_law"
    shown: ClassVar[tuple[str, ...]] = (*Attention.shown, "law")

    law: str = "rerun"

    def features(self) -> frozenset[str]:
        return super().features() | LAWS[self.law].features

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        scene = build(self, rng)
        if LAWS[self.law].same_bits:
            scene.request = replace(scene.request, spec=replace(scene.spec, deterministic=True))
        LAWS[self.law].holds(bench, scene, self, rng)


def _call(
    bench: Bench, request: Request, batch: AttentionBatch, q: Float32, kv: Cache | Ragged, scene: Scene
) -> tuple[Any, Any]:
    """One run with the scene's operands, as far as the request has them."""
    plan = bench.plan(request, batch)
    operands = scene.operands(bench)
    assert isinstance(request.spec, AttentionSpec)
    if not request.spec.sinks:
        operands.pop("sinks", None)
    out, lse = bench.run(plan, bench.put("q", q, scene.spec.q_dtype), kv, **operands)
    return out, lse


def _first(bench: Bench, scene: Scene) -> tuple[Cache | Ragged, Host]:
    """The scene's keys and values on the device, and the output's bits of one right call: all else is held against
    them, and they against the oracle."""
    bench.plan(scene.request, scene.batch)
    kv, keys, values = fill(bench, scene)
    out, lse = _call(bench, scene.request, scene.batch, scene.q, kv, scene)
    judge(bench, scene.problem(keys, values), bench.get(out), None if lse is None else bench.get(lse))
    return kv, bench.bits(out)


def _rerun(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """The same call twice, and once more by a new plan."""
    kv, first = _first(bench, scene)
    plan = bench.plan(scene.request, scene.batch)
    q, operands = bench.put("q", scene.q, scene.spec.q_dtype), scene.operands(bench)
    for which in ("second run", "third run"):
        bench.same_bits(f"out of the {which}", bench.run(plan, q, kv, **operands)[0], first)
    bench.same_bits("out of a new plan", _call(bench, scene.request, scene.batch, scene.q, kv, scene)[0], first)


def _permuted_pages(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """The same tokens in other pages."""
    _, first = _first(bench, scene)
    page(scene, rows_of(check.batch), rng)
    kv, _, _ = fill(bench, scene)
    bench.same_bits("out", _call(bench, scene.request, scene.batch, scene.q, kv, scene)[0], first)


def _moved_cache(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """The same blocks moved elsewhere by `cache_move`, within their cache."""
    cache = scene.request.cache
    assert cache is not None
    kv, first = _first(bench, scene)
    place = rng.permutation(cache.num_blocks)
    offset = np.arange(cache.block_size)
    src = (np.arange(cache.num_blocks)[:, None] * cache.block_size + offset).ravel()
    dst = (place[:, None] * cache.block_size + offset).ravel()
    assert isinstance(kv, Cache)
    move = bench.plan(Request(CacheMoveSpec(), cache, kv.layout), MoveBatch(src, dst))
    kv = bench.run(move, kv, kv)
    table = np.asarray(scene.batch.block_table)
    valid = (table >= 0) & (table < cache.num_blocks)
    moved = replace(scene.batch, block_table=np.where(valid, place[np.where(valid, table, 0)], table).astype(np.int32))
    bench.same_bits("out", _call(bench, scene.request, moved, scene.q, kv, scene)[0], first)


def _padded(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """More rows of q than the batch has, and a wider block table."""
    kv, first = _first(bench, scene)
    q = np.concatenate([scene.q, np.full((5, *scene.q.shape[1:]), np.nan, np.float32)])
    table = np.asarray(scene.batch.block_table)
    wider = np.concatenate([table, np.full((len(table), 9), -7, np.int32)], axis=1)
    out, _ = _call(bench, scene.request, replace(scene.batch, block_table=wider), q, kv, scene)
    bench.same("out", bench.bits(out)[: len(first)], first)


def _other_batch_before(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """A plan that served another batch serves this one as a new plan does, and then the other one again: nothing of the
    batch before stays. The other one has other lengths, other rows of q for each request, and other pages."""
    kv, first = _first(bench, scene)
    given, table = scene.batch, scene.batch.block_table
    other = replace(
        given,
        q_indptr=np.concatenate([[0], np.cumsum(np.diff(given.q_indptr)[::-1])]).astype(np.int32),
        kv_lens=np.asarray(given.kv_lens) // 2,
        block_table=None if table is None else _pages_reversed(scene, np.array(table)),
        q_start=None,
    )
    of_other = bench.bits(_call(bench, scene.request, other, scene.q, kv, scene)[0])
    q, operands = bench.put("q", scene.q, scene.spec.q_dtype), scene.operands(bench)
    plan = bench.plan(scene.request, other)
    for what, batch, bits in (
        ("another", other, of_other),
        ("this", given, first),
        ("the other again", other, of_other),
    ):
        plan.update(batch)
        bench.same_bits(f"out of {what} batch", bench.run(plan, q, kv, **operands)[0], bits)


def _pages_reversed(scene: Scene, table: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Each request's pages from the last to the first."""
    assert scene.request.cache is not None
    used = -(-np.asarray(scene.batch.kv_lens, np.int64) // scene.request.cache.block_size)
    for row, count in zip(table, used, strict=True):
        row[:count] = row[:count][::-1].copy()
    return table


def _q_starts(scene: Scene) -> npt.NDArray[np.int64]:
    """Position of each request's first query."""
    batch = scene.batch
    if batch.q_start is not None:
        return np.asarray(batch.q_start, np.int64)
    return np.asarray(batch.kv_start + np.asarray(batch.kv_lens, np.int64) - np.diff(batch.q_indptr))


@dataclass(frozen=True, eq=False)
class _Half:
    """Attention over keys [first, last) of every request: a call of its own."""

    request: Request
    batch: AttentionBatch
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]


def _halves(scene: Scene) -> tuple[_Half, _Half]:
    """A cut at a page edge near the middle of each request. Positions stay; a sink joins the first half only."""
    cache, batch = scene.request.cache, scene.batch
    assert cache is not None
    kv_lens = np.asarray(batch.kv_lens, np.int64)
    blocks = kv_lens // cache.block_size // 2
    cut, zero = blocks * cache.block_size, np.zeros_like(blocks)
    table = np.asarray(batch.block_table)
    start = _q_starts(scene).astype(np.int32)
    first = replace(batch, kv_lens=cut.astype(np.int32), q_start=start)
    second = replace(
        batch,
        kv_lens=(kv_lens - cut).astype(np.int32),
        kv_start=(batch.kv_start + cut).astype(np.int32),
        q_start=start,
        block_table=np.stack([np.roll(row, -int(n)) for row, n in zip(table, blocks, strict=True)]),
    )
    spec = replace(scene.spec, want_lse=True, out_dtype="f32")
    return (
        _Half(replace(scene.request, spec=spec), first, zero, cut),
        _Half(replace(scene.request, spec=replace(spec, sinks=False)), second, cut, kv_lens),
    )


def _half_problem(half: _Half, whole: Problem) -> Problem:
    spec = half.request.spec
    assert isinstance(spec, AttentionSpec)
    bounds = list(zip(half.first, half.last, strict=True))
    return replace(
        whole,
        spec=spec,
        batch=half.batch,
        keys=[k[a:b] for k, (a, b) in zip(whole.keys, bounds, strict=True)],
        values=[v[a:b] for v, (a, b) in zip(whole.values, bounds, strict=True)],
        sinks=whole.sinks if spec.sinks else None,
    )


def _split_merge(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """Attention over the first pages and over the rest, merged, is attention over all; sinks join one part only."""
    halves = _halves(scene)
    bench.plan(halves[0].request, scene.batch)
    kv, keys, values = fill(bench, scene)
    whole = replace(scene.problem(keys, values), spec=replace(scene.spec, want_lse=True, out_dtype="f32"))
    parts: list[tuple[Float64, Float64, AttentionBounds]] = []
    got: list[tuple[Float64, Float64]] = []
    for number, half in enumerate(halves):
        out, lse = (bench.get(a) for a in _call(bench, half.request, half.batch, scene.q, kv, scene))
        problem = _half_problem(half, whole)
        want, want_lse = attention(problem)
        bounds = tolerance(problem, want, want_lse)
        bench.compare(f"out of part {number}", out, want, bounds.out)
        bench.compare(f"lse of part {number}", lse, want_lse, bounds.lse, biased=False)
        parts.append((want, want_lse, bounds))
        got.append((out, lse))
    outs, lses = (np.stack(column).astype(np.float32) for column in zip(*got, strict=True))
    merge = bench.plan(Request(MergeStatesSpec(scene.spec.num_q_heads, scene.spec.head_dim_vo)))
    merged, merged_lse = bench.run(merge, bench.put("outs", outs, "f32"), bench.put("lses", lses, "f32"))
    want, want_lse = attention(whole)
    bound, lse_bound = _merged_bounds(parts, want, want_lse)
    bench.compare("out, merged", bench.get(merged), want, bound)
    bench.compare("lse, merged", bench.get(merged_lse), want_lse, lse_bound, biased=False)


def _merged_bounds(
    parts: Sequence[tuple[Float64, Float64, AttentionBounds]], out: Float64, lse: Float64
) -> tuple[Bound, Bound]:
    """The parts' own errors, weighted by their shares, on top of what merging costs."""
    outs, lses = np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])
    check_out, check_lse = merge_states.merge_states(outs, lses)
    assert np.allclose(check_out, out, atol=1e-9, rtol=1e-9)
    assert np.allclose(check_lse, lse, atol=1e-9, rtol=1e-9)
    bounds = merge_states.tolerance(outs, lses, out, lse, "f32")
    share = np.exp(lses - np.where(np.isfinite(lse), lse, 0.0))[..., None]
    out_error = np.stack([p[2].out.total for p in parts])
    lse_error = np.stack([p[2].lse.total for p in parts])
    inherited = (share * (out_error + np.abs(outs - out) * lse_error[..., None])).sum(axis=0)
    total = bounds.out
    merged = Bound(total.rounding, total.inner + inherited, total.slack)
    total = bounds.lse
    return merged, Bound(total.rounding, total.inner + (share[..., 0] * lse_error).sum(axis=0), total.slack)


def _against_whole(bench: Bench, problem: Problem, pieces: Sequence[tuple[npt.NDArray[np.int64], Float64]]) -> None:
    """Rows computed in several calls, held against the oracle of the one call that they stand for."""
    out, lse = attention(problem)
    got = np.full_like(out, np.nan)
    for rows, part in pieces:
        got[rows] = part
    bench.compare("out", got, out, tolerance(problem, out, lse).out)


def _in_steps(bench: Bench, scene: Scene, check: AttentionLaw, steps: Callable[[int], list[int]]) -> None:
    """Each request's queries in runs of the lengths that `steps(q_len)` names, one after the other."""
    bench.plan(scene.request, scene.batch)
    kv, keys, values = fill(bench, scene)
    indptr = np.asarray(scene.batch.q_indptr, np.int64)
    q_lens, kv_lens = np.diff(indptr), np.asarray(scene.batch.kv_lens, np.int64)
    plan_of = [np.cumsum([0, *steps(int(n))]) for n in q_lens]
    pieces = []
    for step in range(max(len(p) for p in plan_of) - 1):
        low = np.array([p[min(step, len(p) - 1)] for p in plan_of])
        high = np.array([p[min(step + 1, len(p) - 1)] for p in plan_of])
        rows = np.concatenate([np.arange(a, b) for a, b in zip(indptr[:-1] + low, indptr[:-1] + high, strict=True)])
        batch = replace(
            scene.batch,
            q_indptr=np.concatenate([[0], np.cumsum(high - low)]).astype(np.int32),
            kv_lens=(kv_lens - (q_lens - high)).astype(np.int32),
            q_start=None if scene.batch.q_start is None else (scene.batch.q_start + low).astype(np.int32),
        )
        out, _ = _call(bench, scene.request, batch, scene.q[rows], kv, scene)
        pieces.append((rows, bench.get(out)))
    _against_whole(bench, scene.problem(keys, values), pieces)


def _chunked(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """Prefill in chunks of 7 is prefill in one."""
    _in_steps(bench, scene, check, lambda n: [7] * (n // 7) + ([n % 7] if n % 7 else []))


def _decoded(bench: Bench, scene: Scene, check: AttentionLaw, rng: np.random.Generator) -> None:
    """Verifying several tokens at once is decoding them one by one."""
    _in_steps(bench, scene, check, lambda n: [1] * n)


@dataclass(frozen=True)
class Law:
    """holds: looks whether it does. features: what it takes beyond the attention itself. same_bits: it is about bits,
    and asked of a request that is `deterministic`."""

    holds: Callable[[Bench, Scene, AttentionLaw, np.random.Generator], None]
    features: frozenset[str] = frozenset()
    same_bits: bool = True


_BITS = frozenset({"deterministic"})
LAWS: Final[Mapping[str, Law]] = {
    "rerun": Law(_rerun, _BITS),
    "permuted_pages": Law(_permuted_pages, _BITS),
    "moved_cache": Law(_moved_cache, _BITS | {"op:cache_move"}),
    "padded": Law(_padded, _BITS),
    "other_batch_before": Law(_other_batch_before, _BITS),
    "split_merge": Law(_split_merge, frozenset({"lse", "op:merge_states"}), same_bits=False),
    "chunked": Law(_chunked, same_bits=False),
    "decoded": Law(_decoded, same_bits=False),
}
