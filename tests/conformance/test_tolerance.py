"""The tolerance, proven by measurement: correct implementations in every declared numeric model, in several orders of
summation, written here for this purpose, stay under half of E on every distribution that the suite draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import AttentionBatch, AttentionSpec, Numerics
from opsocket.quantization import get_format
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators import merge_states, moe_route, rms_norm, rope, silu_mul
from opsocket_conformance.operators.attention.batches import Row
from opsocket_conformance.operators.attention.distributions import DISTRIBUTIONS, Heads, draw
from opsocket_conformance.operators.attention.oracle import Problem, attention
from opsocket_conformance.operators.attention.tolerance import tolerance as attention_tolerance
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize

F = np.float32
HALF = 0.5 + 1e-9


def ratio(got, want, bound):
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite)
    error = np.abs(np.where(finite, got - np.where(finite, want, 0), 0))
    return float((error / (bound.total + bound.slack)).max())


# ---- attention: online softmax in f32 over tiles of keys, as kernels do it


def exponential(kind, rng):
    """exact: rounded to f32. approx: up to 2^-12 of relative error on top, as of a hardware unit; exp(0) is 1."""
    if kind == "exact":
        return lambda x: np.exp(x, dtype=F)
    return lambda x: (np.exp(x, dtype=F) * (1 + 2.0**-12 * rng.uniform(-1, 1, x.shape) * (x != 0))).astype(F)


def tangent(kind, rng):
    if kind == "exact":
        return lambda x: np.tanh(x, dtype=F)
    return lambda x: (np.tanh(x, dtype=F) * (1 + 2.0**-12 * rng.uniform(-1, 1, x.shape))).astype(F)


def flash(problem, tiles, *, rng, early_scale=False, base2=False):
    """out f32[T, Hq, Dv], lse f32[T, Hq] of one request without masks, keys in the order and groups of `tiles`."""
    spec = problem.spec
    q, k, v = (a.astype(F) for a in (problem.q, problem.keys[0], problem.values[0]))
    exp, tanh = exponential(spec.numerics.exp, rng), tangent(spec.numerics.tanh, rng)
    group = spec.num_q_heads // spec.num_kv_heads
    out, lse = np.empty((*q.shape[:2], v.shape[2]), F), np.empty(q.shape[:2], F)
    log2e = F(1.4426950408889634)
    for head in range(spec.num_q_heads):
        rows = (q[:, head] * F(spec.scale)).astype(F) if early_scale else q[:, head]
        top = np.full((len(q), 1), -np.inf, F)
        total, acc = np.zeros((len(q), 1), F), np.zeros((len(q), v.shape[2]), F)
        if problem.sinks is not None:
            top, total = np.full((len(q), 1), problem.sinks[head], F), np.ones((len(q), 1), F)
        for tile in tiles:
            s = (rows @ k[tile, head // group].T).astype(F)
            s = s if early_scale else s * F(spec.scale)
            if spec.softcap is not None:
                s = F(spec.softcap) * tanh(s / F(spec.softcap))
            new = np.maximum(top, s.max(axis=1, keepdims=True))
            if base2:
                p, shrink = np.exp2((s - new) * log2e, dtype=F), np.exp2((top - new) * log2e, dtype=F)
            else:
                p, shrink = exp(s - new), exp(top - new)
            total = total * shrink + p.sum(axis=1, keepdims=True, dtype=F)
            rounded = round_to(p, spec.numerics.probabilities)
            acc = acc * shrink + (rounded @ v[tile, head // group]).astype(F)
            top = new
        out[:, head] = round_to(acc / total, spec.out_dtype)
        lse[:, head] = (top + np.log(total, dtype=F))[:, 0]
    return out, lse


def problem(kind, rng, dtype, out_dtype, numerics, *, cap=None, sinks=False, keys=700, d=64):
    heads, rows = Heads(4, 2, d, d, dtype, None, 16, cap), [Row(24, keys)]
    drawn = draw(kind, rng, heads, rows)
    q, k, v = (round_to(a, dtype).astype(np.float64) for a in (drawn.q, drawn.keys[0], drawn.values[0]))
    spec = AttentionSpec(
        4, 2, d, d, float(F(1.25 / np.sqrt(d))), "full", softcap=cap, q_dtype=dtype, out_dtype=out_dtype,
        numerics=numerics, want_lse=True, sinks=sinks,
    )  # fmt: skip
    batch = AttentionBatch(np.array([0, 24]), np.array([keys]))
    return Problem(spec, batch, q, [k], [v], rng.normal(1, 1, 4).astype(F).astype(float) if sinks else None)


def tilings(count):
    order = np.arange(count)
    yield [order]
    yield np.array_split(order, -(-count // 48))
    yield np.array_split(order[::-1], -(-count // 16))
    yield [order[i::5] for i in range(5)]


MODELS = [
    ("f32", "f32", Numerics()),
    ("f32", "f32", Numerics(exp="approx", tanh="approx")),
    ("bf16", "bf16", Numerics()),
    ("bf16", "bf16", Numerics("bf16")),
    ("bf16", "f32", Numerics("bf16", "approx", "approx")),
    ("f16", "f16", Numerics("f16")),
    ("f16", "f32", Numerics("f16", "approx")),
]


@pytest.mark.parametrize(("dtype", "out_dtype", "numerics"), MODELS)
def test_attention_in_every_declared_model_stays_under_half_of_the_bound(dtype, out_dtype, numerics):
    rng, elements, worst, worst_lse = np.random.default_rng(1), 0, 0.0, 0.0
    for kind in DISTRIBUTIONS:
        given = problem(
            kind, rng, dtype, out_dtype, numerics, cap=20.0 if kind == "saturate" else None, sinks=kind == "flat"
        )
        out, lse = attention(given)
        bounds = attention_tolerance(given, out, lse)
        for number, tiles in enumerate(tilings(700)):
            got, got_lse = flash(given, tiles, rng=rng, early_scale=number == 1, base2=number == 2)
            worst = max(worst, ratio(got, out, bounds.out))
            worst_lse = max(worst_lse, ratio(got_lse, lse, bounds.lse))
            elements += out.size
    assert elements > 2e5
    assert worst <= HALF
    assert worst_lse <= HALF


@pytest.mark.parametrize("keys", [1, 2, 3, 5000])
def test_attention_over_few_and_many_keys(keys):
    rng = np.random.default_rng(2)
    for kind in ("normal", "peaky", "cancel"):
        given = problem(kind, rng, "f32", "f32", Numerics(), keys=keys, d=128)
        out, lse = attention(given)
        bounds = attention_tolerance(given, out, lse)
        for tiles in tilings(keys):
            got, got_lse = flash(given, [t for t in tiles if len(t)], rng=rng)
            assert ratio(got, out, bounds.out) <= HALF
            assert ratio(got_lse, lse, bounds.lse) <= HALF


def test_one_rounding_more_than_declared_is_out_of_bounds():
    """bf16 probabilities under a request that declares f32: the bound is not so wide that it does not matter."""
    rng = np.random.default_rng(3)
    given = problem("normal", rng, "f32", "f32", Numerics())
    out, lse = attention(given)
    bound = attention_tolerance(given, out, lse).out
    less = replace(given, spec=replace(given.spec, numerics=Numerics("bf16")))
    assert ratio(flash(less, [np.arange(700)], rng=rng)[0], out, bound) > 5


def test_merging_f32_parts():
    rng = np.random.default_rng(4)
    for spread in (1.0, 100.0):
        outs = rng.standard_normal((7, 40, 8, 64)).astype(F)
        lses = rng.normal(0, spread, (7, 40, 8)).astype(F)
        want, lse = merge_states.merge_states(outs.astype(float), lses.astype(float))
        bounds = merge_states.tolerance(outs.astype(float), lses.astype(float), want, lse, "f32")
        top, total, acc = lses[0], np.ones_like(lses[0]), outs[0]
        for o, s in zip(outs[1:], lses[1:], strict=True):
            new = np.maximum(top, s)
            a, b = np.exp(top - new, dtype=F), np.exp(s - new, dtype=F)
            acc, total, top = acc * a[..., None] + o * b[..., None], total * a + b, new
        assert ratio(acc / total[..., None], want, bounds.out) <= HALF
        assert ratio(top + np.log(total, dtype=F), lse, bounds.lse) <= HALF


# ---- matrix products


def chained(x, w):
    """One f32 accumulator, column after column."""
    acc = np.zeros((len(x), len(w)), F)
    for j in range(x.shape[1]):
        acc += x[:, j : j + 1] * w[:, j]
    return acc


def in_lanes(x, w, lanes):
    """As SIMD kernels do: `lanes` partial sums, added at the end."""
    return np.sum([chained(x[:, i::lanes], w[:, i::lanes]) for i in range(lanes)], axis=0, dtype=F)


def apart(fmt, tensors, x, n, k):
    """Codes and zero points or minimums summed apart, group by group, scales applied to the sums."""
    group = fmt.group(tensors, n, k)
    columns = x if group.input_permutation is None else x[:, group.input_permutation]
    y = np.zeros((len(x), n), F)
    offset = F(8)
    for g in range(k // group.group_size):
        part = slice(g * group.group_size, (g + 1) * group.group_size)
        xs = columns[:, part]
        codes = group.codes[:, part].astype(F) + offset
        y += group.scale[:, g] * (chained(xs, codes) - offset * xs.sum(axis=1, keepdims=True, dtype=F))
        if group.minimum is not None:
            y -= group.minimum[:, g] * xs.sum(axis=1, keepdims=True, dtype=F)
    return y


FORMATS = [
    "f32",
    "bf16",
    "q4_0",
    "q4_1",
    "q4_K",
    "q2_K",
    "q6_K",
    "i4_g64",
    "i4_g32_z",
    "i2_g64_z",
    "gptq_v1_i4_g32_act",
]


@pytest.mark.parametrize("format_id", FORMATS)
@pytest.mark.parametrize("kind", ["normal", "outliers", "cancel", "extreme"])
def test_matmul_in_several_orders_stays_under_half_of_the_bound(format_id, kind):
    rng, fmt = np.random.default_rng(5), get_format(format_id)
    m, n, k = 8, 64, 1024
    tensors = random_weight(rng, fmt, n, k)
    weight = dequantize(fmt, tensors, n, k)
    x = activations(rng, kind, m, k, "f32")
    want, bound = expect(fmt, x, weight, None, "f32", Numerics())
    w = weight.value.astype(F)
    results = [chained(x, w), in_lanes(x, w, 8), in_lanes(x, w, 16), (x @ w.T).astype(F)]
    if not fmt.is_float:
        results.append(apart(fmt, tensors, x, n, k))
    for got in results:
        assert ratio(got, want, bound) <= HALF


def test_matmul_of_integer_codes_stays_under_half_of_the_bound():
    rng, fmt = np.random.default_rng(6), get_format("i8_channel_a8")
    tensors = random_weight(rng, fmt, 200, 1024)
    x = activations(rng, "outliers", 37, 1024, "bf16")
    want, bound = expect(fmt, x, dequantize(fmt, tensors, 200, 1024), None, "f32", Numerics())
    scale = (np.abs(x).max(axis=1, keepdims=True) / F(127)).astype(F)
    codes = np.where(scale == 0, 0, np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)))
    exact = codes.astype(np.int64) @ tensors["weight"].astype(np.int64).T
    for got in (exact.astype(F) * scale * tensors["scale"], exact.astype(F) * (scale * tensors["scale"])):
        assert ratio(got, want, bound) <= HALF


# ---- the rest


def test_norm_rotation_activation_and_softmax_in_f32():
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((50, 896)).astype(F), rng.standard_normal(896).astype(F)
    want = rms_norm.rms_norm(x.astype(float), w.astype(float), 1e-5)
    squares = chained(x**2, np.ones((1, 896), F)) / F(896)
    got = x * (F(1) / np.sqrt(squares + F(1e-5))) * w
    assert ratio(got, want, rms_norm.tolerance(want, 896, "f32")) <= HALF

    gate, up = (rng.standard_normal((50, 896)) * s for s in (30, 1))
    gate, up = gate.astype(F), up.astype(F)
    want = silu_mul.silu_mul(gate.astype(float), up.astype(float))
    with np.errstate(over="ignore"):
        got = gate / (F(1) + np.exp(-gate, dtype=F)) * up
    assert ratio(got, want, silu_mul.tolerance(gate.astype(float), up.astype(float), want, "f32")) <= HALF

    angle = rng.uniform(0, 1e6, (50, 64))
    a, b = rng.standard_normal((2, 50, 64)).astype(F)
    want = a * np.cos(angle) - b * np.sin(angle)
    got = a * np.cos(angle).astype(F) - b * np.sin(angle).astype(F)
    assert ratio(got, want, rope.tolerance(want, np.abs(a) + np.abs(b), angle, "f32")) <= HALF

    logits = (rng.standard_normal((50, 128)) * 10).astype(F)
    want, chosen = moe_route.moe_route(logits.astype(float), 8, True)
    p = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=F)
    p = np.take_along_axis(p / p.sum(axis=1, keepdims=True, dtype=F), chosen, axis=1)
    got = p / p.sum(axis=1, keepdims=True, dtype=F)
    assert ratio(got, want, moe_route.tolerance(want, logits.astype(float))) <= HALF
