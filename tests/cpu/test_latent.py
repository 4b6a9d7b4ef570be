"""Caches of kind "latent": one vector per token that every query head reads, whose first channels are the values."""

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
    BlockPairs,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    KVFormat,
    MoveBatch,
    Ragged,
    Request,
    SlotBatch,
)

DK, DV = 24, 16
FORMATS = [
    KVFormat("f32"),
    KVFormat("bf16"),
    KVFormat("f16"),
    KVFormat("f8e4m3fn"),
    KVFormat("i8", "token_head"),
    KVFormat("i8", "token_head", "f16"),
    KVFormat("i4", "token_head"),
    KVFormat("f8e4m3fn", "token_head"),
    KVFormat("i8", "channel"),
]
IDS = [f"{f.code}-{f.granularity}-{f.scale_dtype}" for f in FORMATS]
WITH_FIXTURES = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _spec(fmt: KVFormat, num_blocks: int = 9, block_size: int = 4, dk: int = DK, dv: int = DV) -> CacheSpec:
    return CacheSpec(num_blocks, block_size, 1, dk, dv, fmt, None, kind="latent")


def _scales(fmt: KVFormat) -> dict[str, np.ndarray]:
    return {"k_scale": np.full((1, DK), 0.08, np.float32)} if fmt.granularity == "channel" else {}


def _write(session: Any, cache: Any, latent: np.ndarray, slots: Any) -> None:
    plan = session.plan(Request(CacheWriteSpec(), cache.spec), SlotBatch(np.asarray(slots)))
    plan.run(cache, session.upload(latent), None)


def _read(session: Any, cache: Any, slots: Any) -> np.ndarray:
    k, v = session.plan(Request(CacheReadSpec(), cache.spec), SlotBatch(np.asarray(slots))).run(cache)
    assert v is None
    return session.download(k)


@pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
def test_holds_one_vector_of_each_token_with_one_scale(session: Any, poisoned_cache: Any, fmt: KVFormat):
    rng, cache = np.random.default_rng(1), poisoned_cache(_spec(fmt), **_scales(fmt))
    assert set(cache.planes) == {"k", "k_scale"} if fmt.granularity == "token_head" else {"k"}
    latent = rng.standard_normal((11, 1, DK)).astype(np.float32)
    latent[:, :, DV:] *= 3.0  # the largest value sits in the rotary part, and the scale is that of the whole vector
    slots = rng.permutation(cache.spec.num_slots)[:11]
    _write(session, cache, latent, slots)
    got = _read(session, cache, slots)
    if fmt.granularity == "token_head" and fmt.code.startswith("i"):
        scale = (np.abs(latent).max(-1, keepdims=True) / np.float32(fmt.max_code)).astype(np.float32)
        scale = scale.astype(np.float16).astype(np.float32) if fmt.scale_dtype == "f16" else scale
        want = np.clip(np.rint(latent / scale), -fmt.max_code, fmt.max_code).astype(np.float32) * scale
        np.testing.assert_array_equal(got, want)
    step = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "i4": 1 / 14, "i8": 1 / 50}.get(fmt.code, 2**-4)
    assert (np.abs(got - latent) <= step * np.abs(latent).max(-1, keepdims=True)).all()


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    mask = draw(st.sampled_from(["causal", "full", "tree"]))
    requests = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30)), min_size=1, max_size=4))
    return {
        "spec": AttentionSpec(
            draw(st.sampled_from([1, 5, 16])),
            1,
            DK,
            DV,
            0.3,
            mask,
            draw(st.sampled_from([None, 0, 7])),
            draw(st.sampled_from([None, 2])),
            draw(st.sampled_from([None, 1.5])),
            draw(st.booleans()),
            draw(st.booleans()),
            want_lse=True,
        ),
        "requests": [(q, q + kv) for q, kv in requests],
        "fmt": draw(st.sampled_from(FORMATS[:-1])),
        "block_size": draw(st.sampled_from([1, 4, 16])),
        "seed": draw(st.integers(0, 999)),
    }


@given(problem=problems())
@WITH_FIXTURES
def test_attention_with_every_knob_is_that_over_the_dequantized_vectors(
    problem: Any, session: Any, poisoned_cache: Any, deal_blocks: Any, attention_reference: Any
):
    rng, spec = np.random.default_rng(problem["seed"]), problem["spec"]
    q_lens, kv_lens = (list(n) for n in zip(*problem["requests"], strict=True))
    q_indptr = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    rows, block_size = int(q_indptr[-1]), problem["block_size"]
    num_blocks = sum(-(-n // block_size) for n in kv_lens) + 2
    table, slots = deal_blocks(rng, kv_lens, block_size, num_blocks)
    batch = AttentionBatch(q_indptr, np.array(kv_lens, np.int32), table)
    tree = None
    if spec.mask == "tree":
        sizes = [(n * n + 7) // 8 for n in q_lens]
        positions = np.concatenate([np.arange(kv - n, kv) for n, kv in zip(q_lens, kv_lens, strict=True)])
        batch = replace(batch, mask_indptr=np.concatenate([[0], np.cumsum(sizes)]), q_positions=positions.astype(int))
        tree = rng.integers(0, 256, sum(sizes), dtype=np.uint8)
    cache = poisoned_cache(_spec(problem["fmt"], num_blocks, block_size))
    everything = np.concatenate(slots).astype(int)
    _write(session, cache, rng.standard_normal((len(everything), 1, DK)).astype(np.float32), everything)
    held = [_read(session, cache, of_request) for of_request in slots]
    q = rng.standard_normal((rows, spec.num_q_heads, DK)).astype(np.float32)
    sinks = rng.standard_normal(spec.num_q_heads).astype(np.float32) if spec.sinks else None
    slopes = rng.random(spec.num_q_heads).astype(np.float32) if spec.alibi else None
    optional = [None if a is None else session.upload(a) for a in (sinks, slopes, tree)]
    out, lse = session.plan(Request(spec, cache.spec), batch).run(session.upload(q), cache, *optional)
    want, want_lse = attention_reference(spec, batch, q, held, [k[..., :DV] for k in held], sinks, slopes, tree)
    np.testing.assert_allclose(session.download(out), want, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(session.download(lse), want_lse, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("fmt", FORMATS[:5], ids=IDS[:5])
def test_the_sizes_of_deepseek(
    session: Any, poisoned_cache: Any, deal_blocks: Any, attention_reference: Any, fmt: KVFormat
):
    """512 compressed channels and 64 rotary ones, 16 query heads, a batch of decode steps."""
    rng, kv_lens = np.random.default_rng(3), [37, 1, 64]
    table, slots = deal_blocks(rng, kv_lens, 16, 9)
    cache = poisoned_cache(_spec(fmt, 9, 16, 576, 512))
    everything = np.concatenate(slots).astype(int)
    _write(session, cache, rng.standard_normal((len(everything), 1, 576)).astype(np.float32), everything)
    spec = AttentionSpec(16, 1, 576, 512, 192**-0.5)
    batch = AttentionBatch(np.arange(4), np.array(kv_lens), table)
    q = rng.standard_normal((3, 16, 576)).astype(np.float32)
    out, _ = session.plan(Request(spec, cache.spec), batch).run(session.upload(q), cache)
    held = [_read(session, cache, of_request) for of_request in slots]
    want, _ = attention_reference(spec, batch, q, held, [k[..., :512] for k in held])
    np.testing.assert_allclose(session.download(out), want, rtol=1e-5, atol=2e-5)


def test_contiguous_values_may_be_a_view_of_the_keys(session: Any, attention_reference: Any):
    rng, n = np.random.default_rng(6), 7
    k = rng.standard_normal((n, 1, DK)).astype(np.float32)
    q = rng.standard_normal((n, 5, DK)).astype(np.float32)
    spec, array = AttentionSpec(5, 1, DK, DV, 0.3), session.upload(k)
    batch = AttentionBatch(np.array([0, n]), np.array([n]), kv_indptr=np.array([0, n]))
    got, _ = session.plan(Request(spec), batch).run(session.upload(q), Ragged(array, array[..., :DV]))
    want, _ = attention_reference(spec, batch, q, [k], [k[..., :DV]])
    np.testing.assert_allclose(session.download(got), want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("fmt", [FORMATS[1], FORMATS[4]], ids=["bf16", "i8"])
def test_moves_and_copies_are_exact(session: Any, poisoned_cache: Any, fmt: KVFormat):
    rng, spec = np.random.default_rng(4), _spec(fmt)
    cache, larger = poisoned_cache(spec), poisoned_cache(replace(spec, num_blocks=12))
    _write(session, cache, rng.standard_normal((36, 1, DK)).astype(np.float32), np.arange(36))
    before = _read(session, cache, np.arange(36))
    session.plan(Request(CacheCopyBlocksSpec(), larger.spec), BlockPairs(np.array([[8, 11], [0, 3]]))).run(
        cache, larger
    )
    np.testing.assert_array_equal(
        _read(session, larger, [*range(44, 48), *range(12, 16)]), before[[*range(32, 36), *range(4)]]
    )
    session.plan(Request(CacheMoveSpec(), spec), MoveBatch(np.arange(35), np.arange(1, 36))).run(cache, cache)
    np.testing.assert_array_equal(_read(session, cache, np.arange(1, 36)), before[:35])


def test_a_latent_cache_takes_no_values_and_another_needs_them(session: Any):
    cache = session.allocate_cache(_spec(KVFormat("f32")))
    k = session.upload(np.ones((1, 1, DK), np.float32))
    plan = session.plan(Request(CacheWriteSpec(), cache.spec), SlotBatch(np.array([0])))
    before = cache.planes["k"].clone()
    with pytest.raises(ContractError) as refused:
        plan.run(cache, k, k)
    assert refused.value.argument == "v"
    assert (cache.planes["k"] == before).all()
    with pytest.raises(ContractError) as refused:
        session.allocate_cache(_spec(KVFormat("f32")), v_scale=np.ones(1, np.float32))
    assert refused.value.argument == "v_scale"


def test_attention_of_another_shape_than_the_cache_is_unsupported_by_name(session: Any):
    support = session.supports(Request(AttentionSpec(4, 2, DK, DK, 1.0), _spec(KVFormat("f32"))))
    assert {r.field for r in support.reasons} >= {"num_kv_heads", "head_dim_vo"}
