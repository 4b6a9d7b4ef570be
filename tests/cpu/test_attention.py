"""Attention against a loop in float64: every knob, over poisoned caches and over contiguous keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    CacheSpec,
    CacheWriteSpec,
    KVFormat,
    Ragged,
    Request,
    SlotBatch,
    Unsupported,
)

ROUNDOFF = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}
WITH_FIXTURES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _close(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    np.testing.assert_array_less(np.abs(got - want), 2 * ROUNDOFF[dtype] * np.abs(want) + 2e-5)


def _as(session: Any, values: np.ndarray, dtype: str) -> tuple[Any, np.ndarray]:
    """An array of the session, and what it holds after rounding to dtype."""
    array = session.upload(values, dtype)
    return array, session.download(array)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    mask = draw(st.sampled_from(["causal", "full", "tree"]))
    requests = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 40)), min_size=1, max_size=5))
    if mask == "tree":
        requests = [(q, q + kv) for q, kv in requests]
    window = draw(st.sampled_from([(None, None), (0, 0), (3, None), (9, 2), (None, 1)]))
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 5), (3, 1), (2, 3)]))
    return {
        "spec": AttentionSpec(
            kv_heads * group,
            kv_heads,
            draw(st.sampled_from([4, 7, 64])),
            draw(st.sampled_from([3, 8])),
            draw(st.sampled_from([0.11, 1.0, -0.7])),
            mask,
            window[0],
            window[1],
            draw(st.sampled_from([None, 1.5])),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.sampled_from(["f32", "bf16", "f16"])),
            draw(st.sampled_from(["f32", "bf16", "f16"])),
            draw(st.sampled_from(["f32", "bf16", "f16"])),
            want_lse=True,
        ),
        "requests": requests,
        "kv_start": draw(st.sampled_from([0, 5, "each"])),
        "q_start": draw(st.booleans()),
        "q_positions": mask == "tree" or draw(st.booleans()),
        "block_size": draw(st.sampled_from([None, 1, 4, 16])),
        "seed": draw(st.integers(0, 999)),
    }


@given(problem=problems())
@WITH_FIXTURES
def test_agrees_with_the_loop(
    problem: Any, session: Any, poisoned_cache: Any, deal_blocks: Any, attention_reference: Any
):
    rng, spec = np.random.default_rng(problem["seed"]), problem["spec"]
    q_lens, kv_lens = (list(n) for n in zip(*problem["requests"], strict=True))
    q_indptr = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    rows, size = int(q_indptr[-1]), len(q_lens)
    kv_start: Any = problem["kv_start"]
    kv_start = rng.integers(0, 9, size, dtype=np.int32) if kv_start == "each" else kv_start
    batch = AttentionBatch(
        q_indptr,
        np.array(kv_lens, np.int32),
        kv_start=kv_start,
        q_start=rng.integers(-3, 45, size, dtype=np.int32) if problem["q_start"] else None,
        q_positions=rng.integers(-3, 50, rows, dtype=np.int32) if problem["q_positions"] else None,
    )
    tree = None
    if spec.mask == "tree":
        sizes = [(n * n + 7) // 8 for n in q_lens]
        batch = replace(batch, mask_indptr=np.concatenate([[0], np.cumsum(sizes)]))
        tree = rng.integers(0, 256, sum(sizes), dtype=np.uint8)
    q, q_host = _as(session, rng.standard_normal((rows + 2, spec.num_q_heads, spec.head_dim_qk)), spec.q_dtype)
    sinks = rng.standard_normal(spec.num_q_heads).astype(np.float32) if spec.sinks else None
    slopes = rng.random(spec.num_q_heads).astype(np.float32) if spec.alibi else None
    total = sum(kv_lens)
    k, k_host = _as(session, rng.standard_normal((total, spec.num_kv_heads, spec.head_dim_qk)), spec.kv_dtype)
    v, v_host = _as(session, rng.standard_normal((total, spec.num_kv_heads, spec.head_dim_vo)), spec.kv_dtype)
    starts = np.concatenate([[0], np.cumsum(kv_lens)]).astype(np.int64)

    if problem["block_size"] is None:
        request, kv = Request(spec), Ragged(k, v)
        batch = replace(batch, kv_indptr=starts)
    else:
        fmt = KVFormat(spec.kv_dtype)
        block_size = problem["block_size"]
        num_blocks = sum(-(-n // block_size) for n in kv_lens) + 3
        cache_spec = CacheSpec(num_blocks, block_size, spec.num_kv_heads, spec.head_dim_qk, spec.head_dim_vo, fmt, fmt)
        request, kv = Request(spec, cache_spec), poisoned_cache(cache_spec)
        table, slots = deal_blocks(rng, kv_lens, block_size, num_blocks)
        batch = replace(batch, block_table=table)
        write = session.plan(
            Request(CacheWriteSpec(spec.kv_dtype), cache_spec), SlotBatch(np.concatenate(slots).astype(int))
        )
        write.run(kv, k, v)

    out = session.upload(np.full((rows + 2, spec.num_q_heads, spec.head_dim_vo), 77.0), spec.out_dtype)
    lse = session.upload(np.full((rows + 2, spec.num_q_heads), 77.0), "f32")
    arrays = [None if a is None else session.upload(a) for a in (sinks, slopes, tree)]
    session.plan(request, batch).run(q, kv, *arrays, out=out, lse_out=lse)

    keys, values = (np.split(x, starts[1:-1]) for x in (k_host, v_host))
    want, want_lse = attention_reference(spec, batch, q_host, keys, values, sinks, slopes, tree)
    got, got_lse = session.download(out), session.download(lse)
    _close(got[:rows], want, spec.out_dtype)
    np.testing.assert_allclose(got_lse[:rows], want_lse, rtol=2e-6, atol=2e-5)
    assert (got[rows:] == 77).all()
    assert (got_lse[rows:] == 77).all()


def _spec(**knobs: Any) -> AttentionSpec:
    return AttentionSpec(
        **{"num_q_heads": 4, "num_kv_heads": 2, "head_dim_qk": 8, "head_dim_vo": 8, "scale": 0.4} | knobs
    )


def _ragged(session: Any, rng: np.random.Generator, count: int, heads: int = 2, dim: int = 8) -> tuple[Any, Any]:
    k, v = (rng.standard_normal((count, heads, dim)).astype(np.float32) for _ in range(2))
    return (k, v), Ragged(session.upload(k), session.upload(v))


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("left", [None, 0, 1, 2, 9])
@pytest.mark.parametrize("right", [None, 0, 1, 2, 9])
def test_every_window_sees_exactly_its_keys(session: Any, mask: Any, left: int | None, right: int | None):
    """Equal logits and one-hot values: the output names the keys that were seen."""
    spec = AttentionSpec(1, 1, 4, 12, 1.0, mask, left, right)
    q_lens, kv_lens = np.array([1, 2, 3, 2, 1, 20]), np.array([6, 7, 8, 9, 10, 12])
    q_indptr, kv_indptr = (np.concatenate([[0], np.cumsum(n)]) for n in (q_lens, kv_lens))
    v = np.concatenate([np.eye(12, dtype=np.float32)[:n] for n in kv_lens])[:, None]
    kv = Ragged(session.upload(np.ones((len(v), 1, 4), np.float32)), session.upload(v))
    batch = AttentionBatch(q_indptr, kv_lens, kv_indptr=kv_indptr)
    q = session.upload(np.zeros((int(q_indptr[-1]), 1, 4), np.float32))
    seen = session.download(session.plan(Request(spec), batch).run(q, kv)[0])[:, 0] > 0
    for r, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        for i in range(q_len):
            p = kv_len - q_len + i
            last = min(np.inf if right is None else p + right, p if mask == "causal" else np.inf, kv_len - 1)
            first = -np.inf if left is None else p - left
            assert np.flatnonzero(seen[q_indptr[r] + i]).tolist() == [j for j in range(12) if first <= j <= last]


def test_long_prefill_over_many_tiles(session: Any, attention_reference: Any):
    rng, n = np.random.default_rng(1), 700
    (k, v), kv = _ragged(session, rng, n, heads=1)
    spec = _spec(num_q_heads=3, num_kv_heads=1, window_left=333)
    q = rng.standard_normal((n, 3, 8)).astype(np.float32)
    batch = AttentionBatch(np.array([0, n]), np.array([n]), kv_indptr=np.array([0, n]))
    got, _ = session.plan(Request(spec), batch).run(session.upload(q), kv)
    want, _ = attention_reference(spec, batch, q, [k], [v])
    _close(session.download(got), want, "f32")


def test_tree_longer_than_a_tile(session: Any, attention_reference: Any):
    rng, n, history = np.random.default_rng(2), 150, 1100
    (k, v), kv = _ragged(session, rng, history + n, heads=1)
    spec = _spec(num_q_heads=4, num_kv_heads=1, mask="tree")
    q = rng.standard_normal((n, 4, 8)).astype(np.float32)
    tree = rng.integers(0, 256, (n * n + 7) // 8, dtype=np.uint8)
    batch = AttentionBatch(
        np.array([0, n]),
        np.array([history + n]),
        kv_indptr=np.array([0, history + n]),
        mask_indptr=np.array([0, len(tree)]),
    )
    got, _ = session.plan(Request(spec), batch).run(session.upload(q), kv, None, None, session.upload(tree))
    rows = [0, 1, 63, 64, 65, n - 1]
    want, _ = attention_reference(spec, batch, q, [k], [v], None, None, tree)
    _close(session.download(got)[rows], want[rows], "f32")


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "in a shared group"])
def test_values_hidden_from_a_query_never_reach_it(session: Any, shared: bool):
    """A NaN or infinity in the future of one query, visible to the next, stays where it is visible."""
    rng, n = np.random.default_rng(3), 5 if shared else 20
    (k, v), _ = _ragged(session, rng, 2 * n)
    v[n - 2, 1, 3], v[n - 1, 0, 2], k[n - 1, 1, 0] = np.nan, np.inf, np.nan
    kv = Ragged(session.upload(k), session.upload(v))
    batch = AttentionBatch(np.array([0, n, 2 * n]), np.array([n, n]), kv_indptr=np.array([0, n, 2 * n]))
    q = session.upload(rng.standard_normal((2 * n, 4, 8)).astype(np.float32))
    got = session.download(session.plan(Request(_spec()), batch).run(q, kv)[0])
    clean = [kv.k.nan_to_num(0.0), kv.v.nan_to_num(0.0, posinf=0.0)]
    want = session.download(session.plan(Request(_spec()), batch).run(q, Ragged(*clean))[0])
    assert np.isnan(got[n - 2, 2:, 3]).all()
    assert np.isinf(got[n - 1, :2, 2]).all()
    assert np.isnan(got[n - 1, 2:]).all()
    touched = np.zeros(got.shape, bool)
    touched[n - 2, 2:, 3] = touched[n - 1, :2, 2] = touched[n - 1, 2:] = True
    np.testing.assert_allclose(got[~touched], want[~touched], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", ["causal", "tree"])
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "f8e4m3fn", "f8e5m2", "i8"])
def test_cached_values_hidden_from_one_of_few_queries_never_reach_it(session: Any, fmt: Any, mask: Any):
    """A NaN in a drafted token's value stays with the queries that see that token, also where they share a pass."""
    rng, n, kv_len = np.random.default_rng(6), 6, 70
    form = KVFormat(fmt, "token_head" if fmt == "i8" else "none")
    cache_spec = CacheSpec(5, 16, 2, 24, 40, form, form)
    write = session.plan(Request(CacheWriteSpec("f32"), cache_spec), SlotBatch(np.arange(80)))
    spec = AttentionSpec(6, 2, 24, 40, 24**-0.5, mask)
    bits, tree = {}, None
    if mask == "tree":
        visible = rng.random((n, n)) < 0.5
        tree = session.upload(np.packbits(visible.ravel(), bitorder="little"))
        bits = {"mask_indptr": np.array([0, tree.shape[0]])}
    else:
        visible = np.tri(n, dtype=bool)
    table = np.arange(5, dtype=np.int32)[None]
    batch = AttentionBatch(np.array([0, n]), np.array([kv_len]), table, **bits)
    q = session.upload(rng.standard_normal((n, 6, 24)).astype(np.float32))
    k, v = (rng.standard_normal((80, 2, dim)).astype(np.float32) for dim in (24, 40))
    results = []
    for value in (0.0, np.nan):
        v[kv_len - n + 2, 1] = value
        cache = session.allocate_cache(cache_spec)
        write.run(cache, session.upload(k), session.upload(v))
        plan = session.plan(Request(spec, cache_spec), batch)
        results.append(session.download(plan.run(q, cache, tree_mask=tree)[0]))
    touched = np.zeros(results[0].shape, bool)
    touched[visible[:, 2], 3:] = True
    assert 0 < touched.sum() < touched[:, 3:].size
    assert np.isfinite(results[0]).all()
    assert np.isnan(results[1][touched]).all()
    np.testing.assert_allclose(results[1][~touched], results[0][~touched], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_stale_slots_never_reach_a_decoded_token(session: Any, dtype: Any):
    """NaN before the window and at and past kv_len, within the first and last tiles, changes no bit of the output."""
    rng, kv_len, window = np.random.default_rng(5), 85, 60
    cache_spec = CacheSpec(8, 16, 2, 40, 40, KVFormat(dtype), KVFormat(dtype))
    write = session.plan(Request(CacheWriteSpec("f32"), cache_spec), SlotBatch(np.arange(128)))
    spec = AttentionSpec(6, 2, 40, 40, 40**-0.5, window_left=window)
    batch = AttentionBatch(np.array([0, 1]), np.array([kv_len]), np.arange(8, dtype=np.int32)[None])
    q = session.upload(rng.standard_normal((1, 6, 40)).astype(np.float32))
    k, v = (rng.standard_normal((128, 2, 40)).astype(np.float32) for _ in range(2))
    results = []
    for stale in (0.0, np.nan):
        for x in (k, v):
            x[: kv_len - 1 - window] = x[kv_len:] = stale
        cache = session.allocate_cache(cache_spec)
        write.run(cache, session.upload(k), session.upload(v))
        results.append(session.download(session.plan(Request(spec, cache_spec), batch).run(q, cache)[0]))
    assert np.isfinite(results[0]).all()
    assert np.ptp(results[0]) > 0
    np.testing.assert_array_equal(results[1], results[0])


def test_logits_beyond_the_range_of_exp(session: Any, attention_reference: Any):
    rng, n = np.random.default_rng(4), 9
    (k, v), kv = _ragged(session, rng, n)
    spec = _spec(scale=300.0, sinks=True, want_lse=True)
    q = rng.standard_normal((n, 4, 8)).astype(np.float32)
    sinks = np.array([-1e30, 2000.0, -np.inf, 0.0], np.float32)
    batch = AttentionBatch(np.array([0, n]), np.array([n]), kv_indptr=np.array([0, n]))
    got, lse = session.plan(Request(spec), batch).run(session.upload(q), kv, session.upload(sinks))
    want, want_lse = attention_reference(spec, batch, q, [k], [v], sinks)
    np.testing.assert_allclose(session.download(got), want, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(session.download(lse), want_lse, rtol=1e-5)


def test_nothing_visible(session: Any):
    spec = _spec(sinks=True, want_lse=True)
    empty = Ragged(session.empty((0, 2, 8), "f32"), session.empty((0, 2, 8), "f32"))
    batch = AttentionBatch(np.array([0, 2]), np.array([0]), kv_indptr=np.array([0, 0]))
    q, sinks = session.empty((2, 4, 8), "f32"), session.upload(np.array([1, -2, 3, 0], np.float32))
    out, lse = session.plan(Request(spec), batch).run(q, empty, sinks)
    assert (session.download(out) == 0).all()
    np.testing.assert_array_equal(session.download(lse), [[1, -2, 3, 0]] * 2)
    out, lse = session.plan(Request(_spec(want_lse=True)), batch).run(q, empty)
    assert (session.download(out) == 0).all()
    assert (session.download(lse) == -np.inf).all()


def test_queries_may_be_slices_of_a_fused_projection_and_inputs_stay_as_they_are(session: Any):
    rng, n = np.random.default_rng(5), 6
    fused = session.upload(rng.standard_normal((n, 8, 8)).astype(np.float32))
    q, k, v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    before = fused.clone()
    batch = AttentionBatch(np.array([0, n]), np.array([n]), kv_indptr=np.array([0, n]))
    plan = session.plan(Request(_spec()), batch)
    strided, _ = plan.run(q, Ragged(k, v))
    dense, _ = plan.run(q.contiguous(), Ragged(k.contiguous(), v.contiguous()))
    np.testing.assert_allclose(session.download(strided), session.download(dense), rtol=1e-6, atol=1e-7)
    assert (fused == before).all()


def test_values_may_be_a_view_of_keys(session: Any, attention_reference: Any):
    rng, n = np.random.default_rng(6), 7
    k = rng.standard_normal((n, 2, 8)).astype(np.float32)
    array = session.upload(k)
    spec = _spec(head_dim_vo=5)
    q = rng.standard_normal((n, 4, 8)).astype(np.float32)
    batch = AttentionBatch(np.array([0, n]), np.array([n]), kv_indptr=np.array([0, n]))
    v = array[..., :5].contiguous()
    got, _ = session.plan(Request(spec), batch).run(session.upload(q), Ragged(array, v))
    want, _ = attention_reference(spec, batch, q, [k], [k[..., :5]])
    _close(session.download(got), want, "f32")


def test_lengths_that_are_only_bounds_are_unsupported_and_leave_the_plan_as_it_was(session: Any):
    _, kv = _ragged(session, np.random.default_rng(8), 4)
    batch = AttentionBatch(np.array([0, 4]), np.array([4]), kv_indptr=np.array([0, 4]))
    plan, q = session.plan(Request(_spec()), batch), session.upload(np.ones((4, 4, 8), np.float32))
    before = session.download(plan.run(q, kv)[0])
    with pytest.raises(Unsupported) as refused:
        plan.update(replace(batch, kv_lens=np.array([3]), host_exact=False))
    assert [r.field for r in refused.value.reasons] == ["batch.host_exact"]
    np.testing.assert_array_equal(session.download(plan.run(q, kv)[0]), before)
