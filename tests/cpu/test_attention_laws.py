"""Laws between attention calls: where the keys lie and how the work is cut must not show."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
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
    MergeStatesSpec,
    Ragged,
    Request,
    SlotBatch,
)

LAW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMATS = {
    "f32": KVFormat("f32"),
    "bf16": KVFormat("bf16"),
    "f16": KVFormat("f16"),
    "i8": KVFormat("i8", "token_head", "f16"),
    "i4": KVFormat("i4", "token_head"),
    "f8e4m3fn": KVFormat("f8e4m3fn"),
}
SPEC = AttentionSpec(6, 2, 16, 16, 0.3, want_lse=True)


def _written(session: Any, cache: Any, k: np.ndarray, v: np.ndarray, slots: np.ndarray) -> Any:
    write = session.plan(Request(CacheWriteSpec(), cache.spec), SlotBatch(slots))
    return write.run(cache, session.upload(k), session.upload(v))


def _kv(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    k, v = rng.standard_normal((2, count, 2, 16)).astype(np.float32)
    return k, v


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 90), st.integers(1, 9), st.integers(0, 99))
@LAW
def test_pages_in_any_order_give_the_same_bits(
    session: Any, poisoned_cache: Any, deal_blocks: Any, code: str, kv_len: int, q_len: int, seed: int
):
    rng, block_size = np.random.default_rng(seed), 4
    spec = CacheSpec(40, block_size, 2, 16, 16, FORMATS[code], FORMATS[code])
    k, v = _kv(rng, kv_len)
    q = session.upload(rng.standard_normal((q_len, 6, 16)).astype(np.float32))
    bits = []
    for shuffled in (False, True):
        cache = poisoned_cache(spec)
        table, (slots,) = deal_blocks(rng, [kv_len], block_size, spec.num_blocks)
        if not shuffled:
            table, slots = np.arange(7, 40, dtype=np.int32)[None], 28 + np.arange(kv_len)
        _written(session, cache, k, v, slots)
        batch = AttentionBatch(np.array([0, q_len]), np.array([kv_len]), table)
        out, lse = session.plan(Request(SPEC, spec), batch).run(q, cache)
        bits.append((session.download(out), session.download(lse)))
    np.testing.assert_array_equal(bits[0][0], bits[1][0])
    np.testing.assert_array_equal(bits[0][1], bits[1][1])


@pytest.mark.parametrize(("heads", "dim"), [(8, 33), (3, 64), (1, 5)])
def test_pages_do_not_show_in_long_f32_decoding(
    session: Any, poisoned_cache: Any, deal_blocks: Any, heads: int, dim: int
):
    """Where rows begin off a cache line, matrix kernels may take other steps."""
    rng, kv_len = np.random.default_rng(heads), 1217
    spec = CacheSpec(kv_len + 9, 1, heads, dim, dim, FORMATS["f32"], FORMATS["f32"])
    k, v = rng.standard_normal((2, kv_len, heads, dim)).astype(np.float32)
    q = session.upload(rng.standard_normal((1, heads, dim)).astype(np.float32))
    plan = session.plan(Request(AttentionSpec(heads, heads, dim, dim, 0.2), spec))
    results = []
    for first in (0, 1, 5, None):
        cache = poisoned_cache(spec)
        table, (slots,) = deal_blocks(rng, [kv_len], 1, spec.num_blocks)
        if first is not None:
            table, slots = np.arange(first, first + kv_len)[None], np.arange(first, first + kv_len)
        _written(session, cache, k, v, slots)
        plan.update(AttentionBatch(np.array([0, 1]), np.array([kv_len]), table))
        results.append(session.download(plan.run(q, cache)[0]))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@given(st.integers(1, 5), st.integers(1, 60), st.lists(st.integers(0, 60), max_size=3), st.integers(0, 99))
@LAW
def test_split_and_merged_is_whole(session: Any, q_len: int, kv_len: int, cuts: list[int], seed: int):
    rng = np.random.default_rng(seed)
    k, v = _kv(rng, kv_len)
    kv = Ragged(session.upload(k), session.upload(v))
    q = session.upload(rng.standard_normal((q_len, 6, 16)).astype(np.float32))
    positions = np.arange(q_len) + kv_len - q_len
    plan = session.plan(Request(SPEC))

    def attend(start: int, stop: int) -> tuple[Any, Any]:
        batch = AttentionBatch(
            np.array([0, q_len]),
            np.array([stop - start]),
            kv_indptr=np.array([0, stop - start]),
            kv_start=start,
            q_positions=positions,
        )
        plan.update(batch)
        return plan.run(q, Ragged(kv.k[start:stop], kv.v[start:stop]))

    edges = [0, *sorted(min(c, kv_len) for c in cuts), kv_len]
    parts = [attend(a, b) for a, b in pairwise(edges)]
    outs, lses = (np.stack([session.download(x) for x in xs]) for xs in zip(*parts, strict=True))
    outs[lses == -np.inf] = np.nan
    merge = session.plan(Request(MergeStatesSpec(6, 16)))
    out, lse = merge.run(session.upload(outs), session.upload(lses))
    whole, whole_lse = attend(0, kv_len)
    np.testing.assert_allclose(session.download(out), session.download(whole), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(session.download(lse), session.download(whole_lse), rtol=1e-6, atol=2e-6)


@given(st.integers(2, 70), st.integers(1, 20), st.sampled_from([None, 5]), st.integers(0, 99))
@LAW
def test_prefill_in_chunks_is_prefill(session: Any, count: int, chunk: int, window: int | None, seed: int):
    rng = np.random.default_rng(seed)
    k, v = _kv(rng, count)
    q = rng.standard_normal((count, 6, 16)).astype(np.float32)
    plan = session.plan(Request(AttentionSpec(6, 2, 16, 16, 0.3, window_left=window)))

    def attend(start: int, stop: int) -> np.ndarray:
        plan.update(AttentionBatch(np.array([0, stop - start]), np.array([stop]), kv_indptr=np.array([0, stop])))
        kv = Ragged(session.upload(k[:stop]), session.upload(v[:stop]))
        return session.download(plan.run(session.upload(q[start:stop]), kv)[0])

    chunks = [attend(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    np.testing.assert_allclose(np.concatenate(chunks), attend(0, count), rtol=1e-5, atol=2e-6)


@given(
    st.sampled_from(["causal", "full"]),
    st.lists(st.integers(1, 90), min_size=2, max_size=40),
    st.integers(1, 3),
    st.integers(0, 99),
)
@LAW
def test_a_request_does_not_feel_its_batch(
    session: Any, poisoned_cache: Any, deal_blocks: Any, mask: Any, kv_lens: list[int], q_len: int, seed: int
):
    """A batch of decode or verify steps, some of them padding, against each alone."""
    rng, block_size = np.random.default_rng(seed), 8
    num_blocks = sum(-(-n // block_size) for n in kv_lens)
    spec = CacheSpec(num_blocks, block_size, 2, 16, 16, FORMATS["bf16"], FORMATS["bf16"])
    cache = poisoned_cache(spec)
    table, slots = deal_blocks(rng, kv_lens, block_size, num_blocks)
    _written(session, cache, *_kv(rng, sum(kv_lens)), np.concatenate(slots))
    q_lens = [q_len if rng.random() < 0.9 else 0 for _ in kv_lens]
    starts = np.concatenate([[0], np.cumsum(q_lens)])
    q = rng.standard_normal((int(starts[-1]), 6, 16)).astype(np.float32)
    request = Request(replace(SPEC, mask=mask), spec)
    plan = session.plan(request, AttentionBatch(starts, np.array(kv_lens), table))
    together = session.download(plan.run(session.upload(q), cache)[0])
    for r, kv_len in enumerate(kv_lens):
        rows = slice(int(starts[r]), int(starts[r + 1]))
        plan.update(AttentionBatch(np.array([0, q_lens[r]]), np.array([kv_len]), table[r : r + 1]))
        alone = session.download(plan.run(session.upload(q[rows]), cache)[0])
        np.testing.assert_allclose(together[rows], alone, rtol=1e-5, atol=2e-6)


def test_the_same_call_gives_the_same_bits(session: Any):
    rng, n = np.random.default_rng(0), 300
    kv = Ragged(*(session.upload(x) for x in _kv(rng, n)))
    q = session.upload(rng.standard_normal((n, 6, 16)).astype(np.float32))
    batch = AttentionBatch(np.array([0, n]), np.array([n]), kv_indptr=np.array([0, n]))
    plan = session.plan(Request(AttentionSpec(6, 2, 16, 16, 0.3, deterministic=True)), batch)
    first = session.download(plan.run(q, kv)[0])
    for _ in range(3):
        np.testing.assert_array_equal(session.download(plan.run(q, kv)[0]), first)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_merge_of_nothing_is_nothing(session: Any, dtype: str):
    outs = session.upload(np.full((2, 3, 4, 5), np.nan), dtype)
    lses = session.upload(np.full((2, 3, 4), -np.inf, np.float32))
    out, lse = session.plan(Request(MergeStatesSpec(4, 5, dtype, dtype))).run(outs, lses)
    assert (session.download(out) == 0).all()
    assert (session.download(lse) == -np.inf).all()


def test_merge_of_far_apart_lses_and_in_place(session: Any):
    outs = session.upload(np.stack([np.full((1, 2, 3), x, np.float32) for x in (1, 2, 3)]))
    lses = session.upload(np.array([[[1000.0, -1000]], [[1000.0, -1001]], [[0.0, -np.inf]]], np.float32))
    out = session.empty((1, 2, 3), "f32")
    got, lse = session.plan(Request(MergeStatesSpec(2, 3))).run(outs, lses, out=out)
    assert got is out
    e = np.exp(-1.0)
    np.testing.assert_allclose(session.download(out)[0, :, 0], [1.5, (1 + 2 * e) / (1 + e)], rtol=1e-6)
    np.testing.assert_allclose(session.download(lse)[0], [1000 + np.log(2), -1000 + np.log1p(e)], rtol=1e-6)
