"""The composed rest of a decoder on this backend, against its formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import opsocket
from opsocket.operators import (
    AddSpec,
    ContractError,
    MoECombineSpec,
    MoERouteSpec,
    MoESortSpec,
    Request,
    RMSNormSpec,
    RopeScaling,
    RopeSpec,
    SiluMulSpec,
    TakeRowsSpec,
)

DTYPES = ["f32", "bf16", "f16"]
ROUNDOFF = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}
LAW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _given(session: Any, values: np.ndarray, dtype: str) -> tuple[Any, np.ndarray]:
    array = session.upload(values, dtype)
    return array, session.download(array).astype(np.float64)


def _close(got: Any, want: np.ndarray, dtype: str, slack: float = 8.0) -> None:
    bound = ROUNDOFF[dtype] * np.abs(want) + slack * 2.0**-24 * (np.abs(want) + np.abs(want).max(initial=0))
    np.testing.assert_array_less(np.abs(got - want), bound + 1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "residual"), [(None, False), (None, True), (3, False)])
def test_rms_norm(session: Any, dtype: str, heads: int | None, residual: bool):
    rng = np.random.default_rng(1)
    shape = (5, 40) if heads is None else (5, heads, 40)
    x, x64 = _given(session, rng.standard_normal(shape) * 3, dtype)
    r, r64 = _given(session, rng.standard_normal(shape), dtype)
    weight = rng.standard_normal(40).astype(np.float32)
    plan = session.plan(Request(RMSNormSpec(40, 1e-2, dtype, residual, heads)))
    got = plan.run(x, session.upload(weight), r if residual else None)
    if residual:
        got, joined = got
        _, x64 = _given(session, x64 + r64, dtype)
        np.testing.assert_array_equal(session.download(joined), x64)
    want = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-2) * weight
    _close(session.download(got), want, dtype)
    assert plan.run(x, session.upload(weight), r if residual else None, out=x) is not None
    assert torch.equal(x, got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_puts_its_sum_where_it_is_told(session: Any, dtype: str):
    rng = np.random.default_rng(2)
    x, residual = (session.upload(rng.standard_normal((5, 40)), dtype) for _ in range(2))
    weight, wide = session.upload(np.ones(40, np.float32)), session.empty((5, 48), dtype)
    plan = session.plan(Request(RMSNormSpec(40, 1e-2, dtype, residual=True)))
    own = plan.run(x, weight, residual)
    for _ in range(4):  # the last ones are repeated by the library
        given = session.empty((5, 40), dtype)
        y, joined = plan.run(x, weight, residual, residual_out=given)
        assert joined is given
        assert torch.equal(joined, own[1])
        assert torch.equal(y, own[0])
    for wrong in (wide, wide[:, :40], session.empty((4, 40), dtype)):
        with pytest.raises(ContractError, match="residual_out"):
            plan.run(x, weight, residual, residual_out=wrong)
    alone = session.plan(Request(RMSNormSpec(40, 1e-2, dtype)))
    with pytest.raises(ContractError, match="residual_out"):
        alone.run(x, weight, residual_out=given)


def _turned(x: np.ndarray, positions: np.ndarray, spec: RopeSpec, factors: np.ndarray | None) -> np.ndarray:
    out, half = x.copy(), spec.rotary_dim // 2
    for t, h, i in np.ndindex(len(x), spec.num_heads, half):
        frequency = spec.theta ** (-2 * i / spec.rotary_dim)
        s, magnitude = spec.scaling, 1.0
        if s is not None and s.kind == "linear":
            frequency /= s.factor
        if s is not None and s.kind == "llama3":
            wavelength = 2 * math.pi / frequency
            if wavelength > s.original_max_position / s.low_freq_factor:
                frequency /= s.factor
            elif wavelength >= s.original_max_position / s.high_freq_factor:
                smooth = s.original_max_position / wavelength - s.low_freq_factor
                smooth /= s.high_freq_factor - s.low_freq_factor
                frequency = (1 - smooth) * frequency / s.factor + smooth * frequency
        if s is not None and s.kind == "yarn":
            magnitude = s.attention_factor
            low, high = (
                spec.rotary_dim * math.log(s.original_max_position / (b * 2 * math.pi)) / (2 * math.log(spec.theta))
                for b in (s.beta_fast, s.beta_slow)
            )
            low, high = max(math.floor(low), 0), min(math.ceil(high), spec.rotary_dim - 1)
            ramp = min(max((i - low) / (high - low), 0), 1)
            frequency = frequency / s.factor * ramp + frequency * (1 - ramp)
        if factors is not None:
            frequency /= float(factors[i])
        angle = int(positions[t]) * frequency
        a, b = (2 * i, 2 * i + 1) if spec.interleaved else (i, i + half)
        cos, sin = math.cos(angle) * magnitude, math.sin(angle) * magnitude
        out[t, h, a], out[t, h, b] = x[t, h, a] * cos - x[t, h, b] * sin, x[t, h, a] * sin + x[t, h, b] * cos
    return out


SCALINGS = [
    None,
    RopeScaling("linear", 3.0),
    RopeScaling("llama3", 8.0, 200),
    RopeScaling("yarn", 4.0, 500, beta_fast=16, attention_factor=1.2),
]


@given(
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from(SCALINGS),
    st.booleans(),
    st.sampled_from([(16, 16), (20, 12)]),
    st.booleans(),
)
@LAW
def test_rope(session: Any, dtype: str, interleaved: bool, scaling: Any, with_factors: bool, dims: Any, in_place: bool):
    rng = np.random.default_rng(2)
    spec = RopeSpec(3, *dims, 10000.0, interleaved, scaling, with_factors, dtype)
    x, x64 = _given(session, rng.standard_normal((4, 3, dims[0])), dtype)
    positions = np.array([0, 1, 77, 1_000_003])
    factors = (rng.random(dims[1] // 2) + 0.5).astype(np.float32) if with_factors else None
    plan = session.plan(Request(spec))
    given_factors = None if factors is None else session.upload(factors)
    got = plan.run(x, session.upload(positions), given_factors, out=x if in_place else None)
    assert (got is x) is in_place
    _close(session.download(got), _turned(x64, positions, spec, factors), dtype)
    if not in_place:
        np.testing.assert_array_equal(session.download(x), x64)


def test_rope_of_a_slice_of_a_fused_projection(session: Any):
    rng = np.random.default_rng(3)
    fused = session.upload(rng.standard_normal((4, 5, 8)).astype(np.float32))
    plan, positions = session.plan(Request(RopeSpec(2, 8, 8, 100.0))), session.upload(np.arange(4))
    want = plan.run(fused[:, 1:3].contiguous(), positions)
    assert torch.equal(plan.run(fused[:, 1:3], positions), want)
    before = fused.clone()
    plan.run(fused[:, 1:3], positions, out=fused[:, 1:3])
    assert torch.equal(fused[:, 1:3], want)
    assert torch.equal(fused[:, 3:], before[:, 3:])


@pytest.mark.parametrize(
    "spec",
    [
        RopeSpec(1, 8, 8, 1.0, scaling=RopeScaling("yarn", 2.0, 100)),
        RopeSpec(1, 8, 8, 10.0, scaling=RopeScaling("yarn", 2.0, 100, beta_fast=0.0)),
        RopeSpec(1, 8, 8, 10.0, scaling=RopeScaling("llama3", 2.0, 100, 4.0, 4.0)),
    ],
)
def test_scalings_that_divide_by_zero_are_refused(session: Any, spec: RopeSpec):
    assert not session.supports(Request(spec))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul_and_add(session: Any, dtype: str):
    rng = np.random.default_rng(4)
    a, a64 = _given(session, np.concatenate([rng.standard_normal((3, 9)) * 4, np.full((1, 9), -300.0)]), dtype)
    b, b64 = _given(session, rng.standard_normal((4, 9)), dtype)
    gated = session.plan(Request(SiluMulSpec(9, dtype)))
    total = session.plan(Request(AddSpec(9, dtype)))
    want = a64 * b64 / (1 + np.exp(-a64))
    _close(session.download(gated.run(a, b)), want, dtype, slack=1.0)
    np.testing.assert_array_equal(session.download(total.run(a, b)), session.download(session.upload(a64 + b64, dtype)))
    expected = total.run(a, b)
    assert total.run(a, b, out=a) is a
    assert torch.equal(a, expected)
    expected = gated.run(a, b)
    assert gated.run(a, b, out=b) is b
    assert torch.equal(b, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_take_rows(session: Any, dtype: str):
    x = session.upload(np.arange(24.0).reshape(4, 6), dtype)[:, :5]
    rows = session.upload(np.array([3, 0, 3]))
    plan = session.plan(Request(TakeRowsSpec(5, dtype)))
    got = plan.run(x, rows)
    np.testing.assert_array_equal(session.download(got), session.download(x)[[3, 0, 3]])
    out = session.empty((3, 5), dtype)
    assert plan.run(x, rows, out=out) is out
    assert torch.equal(out, got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renormalize", [False, True])
def test_moe_route(session: Any, dtype: str, renormalize: bool):
    rng = np.random.default_rng(5)
    logits, logits64 = _given(session, rng.integers(-3, 4, (50, 12)) / 2, dtype)
    weights, experts = session.plan(Request(MoERouteSpec(12, 5, renormalize, dtype))).run(logits)
    shares = np.exp(logits64) / np.exp(logits64).sum(1, keepdims=True)
    for row in range(50):
        order = sorted(range(12), key=lambda e: (-shares[row, e], e))[:5]
        want = shares[row, order] / (shares[row, order].sum() if renormalize else 1)
        np.testing.assert_array_equal(session.download(experts)[row], order)
        np.testing.assert_allclose(session.download(weights)[row], want, rtol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_moe_sort(session: Any, tokens: int):
    experts = np.random.default_rng(6).integers(0, 9, (tokens, 3))
    rows, offsets, slots = map(session.download, session.plan(Request(MoESortSpec(12, 3))).run(session.upload(experts)))
    order = np.argsort(experts.ravel(), kind="stable")
    np.testing.assert_array_equal(rows, order // 3)
    np.testing.assert_array_equal(slots.ravel()[order], np.arange(3 * tokens))
    np.testing.assert_array_equal(offsets, [(experts < e).sum() for e in range(13)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_moe_combine(session: Any, dtype: str):
    rng = np.random.default_rng(7)
    x, x64 = _given(session, rng.standard_normal((40, 33)), dtype)
    slots, weights = rng.integers(0, 40, (11, 4)), rng.standard_normal((11, 4)).astype(np.float32)
    plan = session.plan(Request(MoECombineSpec(33, 4, dtype)))
    got = plan.run(x, session.upload(slots), session.upload(weights))
    _close(session.download(got).astype(np.float64), np.einsum("tj,tjw->tw", weights, x64[slots]), dtype)
    out = session.empty((11, 33), dtype)
    assert plan.run(x, session.upload(slots), session.upload(weights), out=out) is out
    assert torch.equal(out, got)


@pytest.mark.parametrize("bad", [-1, 12])
def test_deep_checks_find_what_is_no_expert_and_no_slot(bad: int):
    with opsocket.open("cpu", threads=1, checked="deep") as deep:
        with pytest.raises(ContractError, match=r"experts: wanted 0 to 11"):
            deep.plan(Request(MoESortSpec(12, 2))).run(deep.upload(np.array([[0, bad]])))
        x, weights = deep.upload(np.ones((12, 3), np.float32)), deep.upload(np.ones((1, 2), np.float32))
        with pytest.raises(ContractError, match=r"slots: wanted 0 to 11"):
            deep.plan(Request(MoECombineSpec(3, 2))).run(x, deep.upload(np.array([[0, bad]])), weights)
