"""What conformance does not ask of the native model operators: tables that are met again, ties, NaN, odd places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from opsocket.operators import (
    ArgmaxSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SampleBatch,
    SampleSpec,
    SiluMulSpec,
    TakeRowsSpec,
)
from opsocket_cpu.native.library import library

pytestmark = pytest.mark.skipif(library() is None, reason="the native library was not built here")


def _plan(session: Any, spec: Any) -> Any:
    plan = session.plan(Request(spec))
    assert plan.provider == "native"
    return plan


def _turned(x: np.ndarray, positions: np.ndarray, theta: float, factors: np.ndarray | None = None) -> np.ndarray:
    half = x.shape[-1] // 2
    frequency = theta ** (-np.arange(half) / half) / (1 if factors is None else factors.astype(np.float64))
    angle = positions[:, None, None] * frequency
    a, b = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


def test_positions_met_again_and_far_beyond_the_table_turn_alike(session: Any):
    plan = _plan(session, RopeSpec(2, 32, 32, 10000.0))
    x = np.random.default_rng(0).standard_normal((6, 2, 32)).astype(np.float32)
    for positions in ([0, 5, 5, 7, 2**20 - 1, 2**20 + 3], [5, 0, 2**20 + 3, 5, -1, 7]):
        where = np.array(positions)
        got = session.download(plan.run(session.upload(x), session.upload(where)))
        np.testing.assert_allclose(got, _turned(x, where, 10000.0), atol=3e-6)


def test_other_factors_are_other_angles(session: Any):
    plan = _plan(session, RopeSpec(2, 32, 32, 10000.0, factors=True))
    rng = np.random.default_rng(0)
    x, where = rng.standard_normal((5, 2, 32)).astype(np.float32), np.array([0, 3, 3, 90, 4])
    first, second = (rng.uniform(1, 8, 16).astype(np.float32) for _ in range(2))
    for factors in (first, first, second, first):
        got = session.download(plan.run(session.upload(x), session.upload(where), session.upload(factors)))
        np.testing.assert_allclose(got, _turned(x, where, 10000.0, factors), atol=3e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_in_place(session: Any, interleaved: bool):
    plan = _plan(session, RopeSpec(3, 40, 24, 10000.0, interleaved))
    x = session.upload(np.random.default_rng(0).standard_normal((4, 3, 40)).astype(np.float32))
    where = session.upload(np.arange(4) * 11)
    want = session.download(plan.run(x, where))
    plan.run(x, where, out=x)
    np.testing.assert_array_equal(session.download(x), want)


def test_norm_and_activation_in_place(session: Any):
    x = np.random.default_rng(0).standard_normal((3, 77)).astype(np.float32)
    for spec, others in ((RMSNormSpec(77, 1e-5), [np.ones(77, np.float32)]), (SiluMulSpec(77), [x[::-1].copy()])):
        plan, array = _plan(session, spec), session.upload(x)
        arguments = [session.upload(other) for other in others]
        want = session.download(plan.run(array, *arguments))
        plan.run(array, *arguments, out=array)
        np.testing.assert_array_equal(session.download(array), want)


def test_a_row_number_outside_of_the_matrix_reads_nothing_of_others(session: Any):
    plan = _plan(session, TakeRowsSpec(5))
    got = session.download(plan.run(session.upload(np.ones((3, 5), np.float32)), session.upload(np.array([2, 3, -1]))))
    assert (got[0] == 1).all()
    assert np.isnan(got[1:]).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_first_nan_is_the_largest_and_zeros_are_equal(session: Any, rows: int, dtype: str):
    logits = np.random.default_rng(0).standard_normal((rows, 9001)).astype(np.float32)
    logits[0, [77, 8000]] = np.nan
    if rows > 1:
        logits[1] = -1.0
        logits[1, 4500], logits[1, 8999] = -0.0, 0.0
    got = session.download(_plan(session, ArgmaxSpec(9001, dtype)).run(session.upload(logits, dtype)))
    assert got[0] == 77
    assert rows == 1 or got[1] == 4500


def _batch(rows: int, **settings: Any) -> SampleBatch:
    def column(name: str, default: float) -> np.ndarray:
        return np.full(rows, settings.get(name, default), np.float32)

    return SampleBatch(
        column("temperature", 1), np.full(rows, settings.get("top_k", 0), np.int32), column("top_p", 1),
        column("min_p", 0), np.asarray(settings.get("uniform", np.zeros(rows)), np.float32), column("repetition", 1),
        column("presence", 0), column("frequency", 0), np.zeros(rows + 1, np.int64), np.empty(0, np.int64),
        np.empty(0, np.int32),
    )  # fmt: skip


def test_equal_logits_come_in_the_order_of_their_numbers(session: Any):
    """As many ties as tokens: the order has to be made in several parts."""
    width, uniform = 40000, np.array([0.0, 0.2, 0.5, 0.99])
    plan = _plan(session, SampleSpec(width))
    logits = session.upload(np.full((4, width), 2.5, np.float32))
    plan.update(_batch(4, uniform=uniform))
    want = np.floor(uniform.astype(np.float32).astype(np.float64) * width)
    np.testing.assert_allclose(session.download(plan.run(logits)), want, atol=1)
    plan.update(_batch(4, uniform=uniform, top_k=1000))
    np.testing.assert_allclose(session.download(plan.run(logits)), np.floor(uniform * 1000), atol=1)


def test_a_flat_distribution_draws_from_deep_in_the_order(session: Any):
    rng, width = np.random.default_rng(0), 50000
    logits = (rng.standard_normal((3, width)) * 0.1).astype(np.float32)
    uniform = np.array([0.3, 0.9, 0.9999], np.float32)
    plan = _plan(session, SampleSpec(width))
    plan.update(_batch(3, uniform=uniform))
    got = session.download(plan.run(session.upload(logits)))
    for row in range(3):
        order = np.argsort(-logits[row], kind="stable")
        mass = np.cumsum(np.exp(logits[row][order].astype(np.float64)))
        rank = int(np.flatnonzero(order == got[row])[0])
        share = uniform[row] * mass[-1]
        assert mass[rank] > share * (1 - 1e-6)
        assert rank == 0 or mass[rank - 1] <= share * (1 + 1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan, -np.inf])
def test_logits_without_probabilities_give_the_largest(session: Any, bad: float):
    logits = np.zeros((1, 300), np.float32)
    logits[0, 7:] = bad
    if bad == -np.inf:
        logits[:] = bad
    plan = _plan(session, SampleSpec(300))
    plan.update(_batch(1, uniform=[0.9]))
    assert session.download(plan.run(session.upload(logits)))[0] == (0 if bad == -np.inf else 7)


def test_a_captured_sampler_draws_by_the_next_batch(session: Any):
    plan = _plan(session, SampleSpec(3))
    logits, out = session.upload(np.zeros((1, 3), np.float32)), torch.empty(1, dtype=torch.int64)
    plan.update(_batch(1, uniform=[0.1]))
    with session.capture() as graph:
        plan.run(logits, out=out)
    assert out[0] == 0
    plan.update(_batch(1, uniform=[0.9]))
    graph.replay()
    assert out[0] == 2
