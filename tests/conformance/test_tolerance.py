"""The tolerance, proven by measurement: correct implementations in every declared numeric model, in several orders of
summation, written for this purpose, stay under half of E on every distribution that the suite draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import Numerics
from opsocket.quantization import get_format
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators import merge_states, moe_combine, moe_route, rms_norm, rope, silu_mul
from opsocket_conformance.operators.attention.distributions import DISTRIBUTIONS
from opsocket_conformance.operators.attention.oracle import attention
from opsocket_conformance.operators.attention.tolerance import tolerance as attention_tolerance
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect
from opsocket_conformance.operators.matmul.quantize_activation import int8_rows
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize, of_floats
from opsocket_conformance.power.models import (
    apart,
    chained,
    flash,
    int8_products,
    problem,
    products,
    tilings,
    with_rounded_scales,
)

F = np.float32
HALF = 0.5 + 1e-9


def ratio(got, want, bound):
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite)
    error = np.abs(np.where(finite, got - np.where(finite, want, 0), 0))
    return float((error / (bound.total + bound.slack)).max())


MODELS = [
    ("f32", "f32", Numerics()),
    ("f32", "f32", Numerics(exp="approx", tanh="approx")),
    ("bf16", "bf16", Numerics()),
    ("bf16", "bf16", Numerics("bf16")),
    ("bf16", "f32", Numerics("bf16", "approx", "approx")),
    ("f16", "f16", Numerics("f16")),
    ("f16", "f32", Numerics("f16", "approx")),
    ("f32", "f32", Numerics(accumulate="f32_truncating")),
    ("f16", "f32", Numerics("f16", accumulate="f32_truncating", accumulate_step=16)),
    ("bf16", "f32", Numerics(dequantized="bf16")),
    ("bf16", "f32", Numerics("bf16", accumulate="f32_truncating", accumulate_step=8, dequantized="f16")),
]


@pytest.mark.parametrize(("dtype", "out_dtype", "numerics"), MODELS)
def test_attention_in_every_declared_model_stays_under_half_of_the_bound(dtype, out_dtype, numerics):
    rng, elements, worst, worst_lse = np.random.default_rng(1), 0, 0.0, 0.0
    for kind in DISTRIBUTIONS:
        cap = 20.0 if kind == "saturate" else None
        given = problem(kind, rng, dtype, out_dtype, numerics, cap=cap, sinks=kind == "flat", keys=350)
        out, lse = attention(given)
        bounds = attention_tolerance(given, out, lse)
        for number, (_, tiles) in enumerate(tilings(350)):
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
        for _, tiles in tilings(keys):
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

FORMATS = [
    "f32",
    "bf16",
    "q4_0",
    "q4_1",
    "q5_1",
    "q4_K",
    "q2_K",
    "q3_K",
    "q5_K",
    "q6_K",
    "iq4_xs",
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
    results = [got for _, got in products(x, weight.value.astype(F), Numerics())]
    if not fmt.is_float:
        results.append(apart(fmt, tensors, x, n, k))
    for got in results:
        assert ratio(got, want, bound) <= HALF


@pytest.mark.parametrize("kind", ["normal", "outliers", "cancel", "extreme"])
@pytest.mark.parametrize(
    "numerics",
    [
        Numerics(accumulate="f32_truncating"),
        Numerics(accumulate="f32_truncating", accumulate_step=8, dequantized="bf16"),
        Numerics(dequantized="f16"),
    ],
)
def test_matmul_in_every_declared_model_stays_under_half_of_the_bound(numerics, kind):
    rng, fmt = np.random.default_rng(8), get_format("q4_K")
    tensors, x = random_weight(rng, fmt, 64, 1024), activations(rng, kind, 8, 1024, "f32")
    weight = dequantize(fmt, tensors, 64, 1024)
    want, bound = expect(fmt, x, weight, None, "f32", numerics)
    for _, got in products(x, round_to(weight.value, numerics.dequantized), numerics):
        assert ratio(got, want, bound) <= HALF


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(
    "format_id", ["i8_channel", "q4_1", "q6_K", "i4_g64_z", "gptq_v1_i4_g32_act", "f8e4m3fn_128x128", "mxfp4"]
)
def test_rounded_scales_stay_under_half_of_the_bound_where_they_are_permitted(format_id, dtype):
    rng, fmt = np.random.default_rng(12), get_format(format_id)
    tensors, x = random_weight(rng, fmt, 72, 1024), activations(rng, "normal", 9, 1024, "f32")
    weight = dequantize(fmt, tensors, 72, 1024)
    rounded = with_rounded_scales(fmt, weight, dtype)
    for numerics in (Numerics(scales=dtype), Numerics(scales=dtype, dequantized=dtype)):
        want, bound = expect(fmt, x, weight, None, "f32", numerics)
        for order, got in products(x, round_to(rounded, numerics.dequantized), numerics):
            assert ratio(got, want, bound) <= HALF, order
    same = np.array_equal(rounded, weight.value)
    assert same == (fmt.scale_dtype in ("e8m0", dtype) and not fmt.super_block)
    exact = expect(fmt, x, weight, None, "f32", Numerics())[1]
    assert same == (ratio(x @ rounded.T, want, exact) <= HALF)
    permitted = expect(fmt, x, weight, None, "f32", Numerics(scales=dtype))[1]
    assert same == np.array_equal(permitted.inner, exact.inner)


def test_permission_to_round_scales_is_none_to_cut_them_off():
    rng, fmt = np.random.default_rng(13), get_format("i8_channel")
    tensors, x = random_weight(rng, fmt, 72, 1024), activations(rng, "normal", 9, 1024, "f32")
    want, bound = expect(fmt, x, dequantize(fmt, tensors, 72, 1024), None, "f32", Numerics(scales="bf16"))
    cut = (tensors["scale"].view(np.uint32) & np.uint32(0xFFFF0000)).view(F)
    assert ratio((x @ tensors["weight"].T.astype(F)) * cut, want, bound) > 2


def test_truncation_and_16_bit_weights_are_out_of_bounds_unless_declared():
    rng, fmt = np.random.default_rng(9), get_format("q4_K")
    tensors, x = random_weight(rng, fmt, 64, 8192), np.abs(activations(rng, "normal", 8, 8192, "f32"))
    tensors_value = dequantize(fmt, tensors, 64, 8192)
    want, bound = expect(fmt, x, tensors_value, None, "f32", Numerics())
    assert ratio(x @ round_to(tensors_value.value, "bf16").T, want, bound) > 2
    # Positive terms only: what is cut off never cancels.
    w = np.abs(tensors_value.value).astype(F)
    positive = of_floats(w.astype(float))
    want, bound = expect(get_format("f32"), x, positive, None, "f32", Numerics())
    truncating = Numerics(accumulate="f32_truncating")
    got = next(products(x, w, truncating))[1]
    assert ratio(got, want, bound) > 1
    assert ratio(got, want, expect(get_format("f32"), x, positive, None, "f32", truncating)[1]) <= HALF


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


@pytest.mark.parametrize("kind", ["normal", "outliers", "cancel", "extreme"])
@pytest.mark.parametrize(
    "format_id",
    ["q4_0_a8", "q4_1_a8", "q4_1_a8g32", "q8_0_a8", "q2_K_a8g32", "q3_K_a8", "q4_K_a8", "q5_K_a8g32", "q6_K_a8g32",
     "q5_1_a8", "iq4_nl_a8g32", "i4_g128_a8g32", "i2_g64_z_a8", "gptq_v1_i4_g64_act_a8g32", "i8_channel_a8g32"],
)  # fmt: skip
def test_int8_products_by_groups_stay_under_half_of_the_bound(format_id, kind):
    rng, fmt = np.random.default_rng(10), get_format(format_id)
    tensors, x = random_weight(rng, fmt, 64, 1024), activations(rng, kind, 9, 1024, "f32")
    want, bound = expect(fmt, x, dequantize(fmt, tensors, 64, 1024), None, "f32", Numerics())
    for order, got in int8_products(fmt, tensors, x, 64, 1024):
        assert ratio(got, want, bound) <= HALF, order


def test_the_bound_of_int8_products_has_no_room_for_rounded_factors():
    """A scale, or a sum of codes, rounded to 16 bits stands far outside of it."""
    rng, fmt = np.random.default_rng(11), get_format("q4_1_a8")
    tensors, x = random_weight(rng, fmt, 64, 1024), activations(rng, "normal", 9, 1024, "f32")
    weight = dequantize(fmt, tensors, 64, 1024)
    want, bound = expect(fmt, x, weight, None, "f32", Numerics())
    rows = int8_rows(x, "i8_token", weight.order).value
    for dtype in ("f16", "bf16"):
        assert ratio(rows @ round_to(weight.value, dtype).astype(float).T, want, bound) > 5
        assert ratio(round_to(rows, dtype).astype(float) @ weight.value.T, want, bound) > 5


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


@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("kind", ["normal", "cancel", "positive"])
def test_sums_over_experts_in_f32(kind, top_k):
    """One chain either way, and a tree."""
    rng = np.random.default_rng(14)
    x, slots = rng.standard_normal((400, 896)).astype(F), rng.integers(0, 400, (50, top_k))
    weights = rng.standard_normal((50, top_k)).astype(F)
    if kind == "cancel":
        weights[:, 1::2], slots[:, 1::2] = -weights[:, : top_k // 2 * 2 : 2], slots[:, : top_k // 2 * 2 : 2]
    if kind == "positive":
        x, weights = np.abs(x), np.abs(weights)
    exact, w = x.astype(float), weights.astype(float)
    want = moe_combine.moe_combine(exact, slots, w)
    bound = moe_combine.tolerance(exact, slots, w, want, "f32")
    terms = weights[..., None] * x[slots]
    for order in (range(top_k), range(top_k)[::-1]):
        total = np.zeros_like(terms[:, 0])
        for choice in order:
            total += terms[:, choice]
        assert ratio(total, want, bound) <= HALF
    halves = terms[:, : top_k // 2].sum(axis=1, dtype=F), terms[:, top_k // 2 :].sum(axis=1, dtype=F)
    assert ratio(halves[0] + halves[1], want, bound) <= HALF
