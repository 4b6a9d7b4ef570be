"""The oracle against definitions written once more, a scalar at a time, and against published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.operators import KVFormat, RopeScaling, RopeSpec, SampleBatch
from opsocket.quantization import FORMATS
from opsocket_conformance.floats import fp8_magnitudes, round_to, round_to_fp8
from opsocket_conformance.guard import OracleCalled, kernel_running
from opsocket_conformance.operators import rope
from opsocket_conformance.operators.argmax import argmax
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.oracle import attention
from opsocket_conformance.operators.attention.scene import build
from opsocket_conformance.operators.cache.quantizer import static_scale, store
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize
from opsocket_conformance.operators.merge_states import merge_states
from opsocket_conformance.operators.sample import sample

TORCH = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8e4m3fn": torch.float8_e4m3fn,
    "f8e4m3fnuz": torch.float8_e4m3fnuz,
    "f8e5m2": torch.float8_e5m2,
}


def one_query(spec, q, keys, values, position, first_key, sink, slope, sees):
    """Attention of one query head, from the pinned semantics, without arrays."""
    logits = {}
    for j in range(len(keys)):
        at = first_key + j
        if spec.mask == "causal" and at > position:
            continue
        if spec.window_left is not None and at < position - spec.window_left:
            continue
        if spec.window_right is not None and at > position + spec.window_right:
            continue
        if not sees(j):
            continue
        s = spec.scale * math.fsum(float(a) * float(b) for a, b in zip(q, keys[j], strict=True))
        if spec.softcap is not None:
            s = spec.softcap * math.tanh(s / spec.softcap)
        if slope is not None:
            s -= slope * abs(position - at)
        logits[j] = s
    terms = [*logits.values(), *([sink] if sink is not None else [])]
    if not terms:
        return np.zeros(values.shape[1]), -math.inf
    top = max(terms)
    total = math.fsum(math.exp(t - top) for t in terms)
    out = sum((math.exp(s - top) / total * values[j] for j, s in logits.items()), np.zeros(values.shape[1]))
    return out, top + math.log(total)


@pytest.mark.parametrize(
    "fields",
    [
        {"batch": "chunk"},
        {"batch": "short", "sinks": True},
        {"batch": "mixed", "left": 3, "cap": 5.0},
        {"batch": "shifted", "alibi": True, "left": 9},
        {"batch": "chunk", "mask": "full", "right": 2, "left": 4, "alibi": True, "sinks": True},
        {"batch": "verify", "mask": "tree"},
        {"batch": "verify", "mask": "tree", "left": 5, "alibi": True},
    ],
)
def test_attention_a_scalar_at_a_time(fields):
    scene = build(Attention(hq=4, hkv=2, d=8, lse=True, **fields), np.random.default_rng(0))
    problem = scene.problem([k.astype(float) for k in scene.keys], [v.astype(float) for v in scene.values])
    out, lse = attention(problem)
    batch = scene.batch
    for r in range(len(batch.kv_lens)):
        first, last = batch.q_indptr[r : r + 2]
        q_len, kv_len = last - first, int(batch.kv_lens[r])
        start = batch.kv_start if isinstance(batch.kv_start, int) else int(batch.kv_start[r])
        for i in range(q_len):
            position = start + kv_len - q_len + i
            if batch.q_start is not None:
                position = int(batch.q_start[r]) + i
            if batch.q_positions is not None:
                position = int(batch.q_positions[first + i])

            def sees(j, r=r, i=i, q_len=q_len, kv_len=kv_len):
                new = j - (kv_len - q_len)
                if scene.spec.mask != "tree" or new < 0:
                    return True
                bit = i * q_len + new
                return bool(scene.tree_mask[int(batch.mask_indptr[r]) + bit // 8] >> (bit % 8) & 1)

            for h in range(4):
                want, want_lse = one_query(
                    scene.spec,
                    problem.q[first + i, h],
                    problem.keys[r][:, h // 2],
                    problem.values[r][:, h // 2],
                    position,
                    start,
                    None if scene.sinks is None else float(scene.sinks[h]),
                    None if scene.slopes is None else float(scene.slopes[h]),
                    sees,
                )
                assert out[first + i, h] == pytest.approx(want, rel=1e-11, abs=1e-12)
                assert lse[first + i, h] == pytest.approx(want_lse, rel=1e-12)


def test_a_merge_of_parts_is_the_whole():
    rng = np.random.default_rng(1)
    logits, values = rng.normal(0, 3, (2, 3, 60)), rng.standard_normal((60, 5))
    p = np.exp(logits)
    whole = p / p.sum(-1, keepdims=True) @ values
    parts = np.split(np.arange(60), [7, 7, 40])  # one of them empty
    outs = [p[..., i] @ values[i] / np.maximum(p[..., i].sum(-1, keepdims=True), 1e-300) for i in parts]
    lses = [np.log(p[..., i].sum(-1)) if len(i) else np.full((2, 3), -np.inf) for i in parts]
    out, lse = merge_states(np.stack(outs), np.stack(lses))
    np.testing.assert_allclose(out, whole, rtol=1e-13)
    np.testing.assert_allclose(lse, np.log(p.sum(-1)), rtol=1e-13)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.id)
def test_weights_mean_what_core_says_they_mean(fmt):
    """Two dequantizers written apart, on random bits."""
    rng = np.random.default_rng(2)
    tensors = random_weight(rng, fmt, 16, 512)
    mine = dequantize(fmt, tensors, 16, 512)
    np.testing.assert_array_equal(mine.value, fmt.reference(tensors, 16, 512))
    assert (mine.magnitude >= np.abs(mine.value) * (1 - 1e-12)).all()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
@settings(max_examples=40)
def test_rounding_is_that_of_torch(dtype, values):
    x = np.array(values, np.float32)
    np.testing.assert_array_equal(round_to(x, dtype), torch.from_numpy(x).to(TORCH[dtype]).float().numpy())


@pytest.mark.parametrize("code", ["f8e4m3fn", "f8e4m3fnuz", "f8e5m2"])
def test_fp8_values_and_rounding_are_those_of_torch(code):
    table = fp8_magnitudes(code)
    bits = torch.arange(len(table), dtype=torch.uint8)
    np.testing.assert_array_equal(table, bits.view(TORCH[code]).float().numpy())
    x = np.random.default_rng(3).standard_normal(20000).astype(np.float32) * 100
    x = np.clip(np.concatenate([x, table, -table, (table[1:] + table[:-1]) / 2]), -table[-1], table[-1]).astype(
        np.float32
    )
    np.testing.assert_array_equal(round_to_fp8(x, code), torch.from_numpy(x).to(TORCH[code]).double().numpy())
    np.testing.assert_array_equal(round_to_fp8([1e9, -1e9, np.nan], code), [table[-1], -table[-1], np.nan])


def test_the_pinned_quantizer_of_caches():
    x = np.array([[[127.0, 0.5, 1.5, 2.5, -0.5, -127.0, 63.2]]], np.float32)
    stored = store(x, KVFormat("i8", "token_head"))
    np.testing.assert_array_equal(stored.codes[0, 0], [127, 0, 2, 2, 0, -127, 63])
    assert stored.scale[0, 0, 0] == 1
    np.testing.assert_array_equal(stored.other, stored.codes)  # a division by 1 leaves a tie a tie
    near = store(3 * x, KVFormat("i8", "token_head"))
    np.testing.assert_array_equal(near.codes[0, 0], [127, 0, 2, 2, 0, -127, 63])
    np.testing.assert_array_equal(near.other[0, 0], [127, 1, 1, 3, -1, -127, 63])
    assert store(x * 0, KVFormat("i4", "token_head")).values.tolist() == (x * 0).tolist()
    f16 = store(x / 3, KVFormat("i8", "token_head", "f16"))
    assert f16.scale[0, 0, 0] == float(np.float16(127 / 3 / 127))
    halved = static_scale(x, KVFormat("i8", "tensor"), 0.5)
    assert store(x, KVFormat("i8", "tensor"), halved).codes.max() == 127  # saturated


def test_rope_scalings():
    plain = RopeSpec(1, 64, 64, 1e4)
    base, _ = rope.frequencies(plain)
    assert base[0] == 1
    assert base[16] == pytest.approx(1e4**-0.5)
    yarn, factor = rope.frequencies(
        RopeSpec(1, 64, 64, 1e4, scaling=RopeScaling("yarn", 4.0, 4096, attention_factor=1.1))
    )
    assert (yarn[0], yarn[-1], factor) == (base[0], base[-1] / 4, 1.1)
    llama3, _ = rope.frequencies(RopeSpec(1, 128, 128, 5e5, scaling=RopeScaling("llama3", 8.0, 8192)))
    unscaled, _ = rope.frequencies(RopeSpec(1, 128, 128, 5e5))
    assert (llama3[0], llama3[-1]) == (unscaled[0], unscaled[-1] / 8)
    x = np.random.default_rng(4).standard_normal((3, 1, 64))
    turned, _, _ = rope.rope(x, np.array([0, 5, 9]), plain, None)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-13)
    np.testing.assert_array_equal(turned[0], x[0])


def settings_of(**changes):
    ones, zeros = np.ones(1), np.zeros(1)
    fields = {
        "temperature": ones, "top_k": zeros.astype(int), "top_p": ones, "min_p": zeros, "uniform": zeros,
        "repetition": ones, "presence": zeros, "frequency": zeros, "history_indptr": np.array([0, 0]),
        "history_ids": np.empty(0, int), "history_counts": np.empty(0, int),
    }  # fmt: skip
    return SampleBatch(**(fields | {name: np.array([value]) for name, value in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "token"),
    [
        ({"temperature": 0.0}, 2),
        ({"uniform": 0.0}, 2),
        ({"uniform": 0.39}, 2),
        ({"uniform": 0.41}, 0),
        ({"uniform": 0.75}, 3),
        ({"uniform": 0.999}, 1),
        ({"uniform": 0.999, "top_k": 2}, 0),
        ({"uniform": 0.999, "top_p": 0.65}, 0),
        ({"uniform": 0.999, "top_p": 0.71}, 3),
        ({"uniform": 0.999, "min_p": 0.6}, 0),
        ({"uniform": 0.999, "min_p": 0.4}, 3),
    ],
)
def test_sampling(changes, token):
    logits = np.log([0.3, 0.1, 0.4, 0.2])
    assert sample(logits, settings_of(**changes), 0).token == token


def test_a_kernel_may_not_call_the_oracle():
    with kernel_running("a kernel"), pytest.raises(OracleCalled, match="a kernel called the oracle's argmax"):
        argmax(np.zeros((1, 3)))
    assert argmax(np.zeros((1, 3))).tolist() == [0]
