"""From logits to tokens: the pinned order, a request at a time in float64, away from what rounding could decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsocket.operators import ArgmaxSpec, Request, SampleBatch, SampleSpec

WIDTH = 19


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_argmax_takes_the_first_of_equals(session: Any, dtype: str):
    logits = np.zeros((6, 5000), np.float32)
    logits[1, 4999], logits[2, [7, 70, 4000]], logits[3], logits[4, 0] = 1, 3, -np.inf, -1
    plan = session.plan(Request(ArgmaxSpec(5000, dtype)))
    got = plan.run(session.upload(logits, dtype))
    assert session.download(got).tolist() == [0, 4999, 7, 0, 1, 0]
    out = session.empty((6,), "i64")
    assert plan.run(session.upload(logits, dtype), out=out) is out
    assert session.download(out).tolist() == [0, 4999, 7, 0, 1, 0]


def _choose(logits: np.ndarray, row: dict[str, Any]) -> tuple[int, float]:
    """The token, and how near (in probability) another decision was."""
    logits = logits.astype(np.float64)
    for token, count in row["history"].items():
        x = logits[token]
        x = x / row["repetition"] if x > 0 else x * row["repetition"]
        logits[token] = x - row["frequency"] * count - row["presence"]
    ranked = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    if row["temperature"] == 0:
        return ranked[0], 1.0
    weights = np.exp((logits[ranked] - logits[ranked[0]]) / row["temperature"])
    kept = weights / weights.sum()
    margin = 1.0
    if row["top_k"]:
        kept = kept[: row["top_k"]]
    if row["top_p"] < 1:
        mass = np.cumsum(kept / kept.sum())
        margin = min(margin, float(np.abs(mass - row["top_p"]).min()))
        kept = kept[: 1 + next(i for i, m in enumerate(mass) if m >= row["top_p"])]
    if row["min_p"]:
        margin = min(margin, float(np.abs(kept / kept[0] - row["min_p"]).min()) or 1.0)
        kept = kept[kept >= row["min_p"] * kept[0]]
    mass = np.cumsum(kept / kept.sum())
    margin = min(margin, float(np.abs(mass[:-1] - row["uniform"]).min(initial=1.0)))
    return ranked[next(i for i, m in enumerate(mass) if m > row["uniform"] or i == len(mass) - 1)], margin


ROWS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5, 1e-30]),
        "top_k": st.sampled_from([0, 1, 4, WIDTH, 1000]),
        "top_p": st.sampled_from([0.0, 0.35, 0.8, 1.0]),
        "min_p": st.sampled_from([0.0, 0.07, 0.5, 1.0]),
        "uniform": st.sampled_from([0.0, 0.21, 0.5, 0.77, 0.99999994]),
        "repetition": st.sampled_from([1.0, 1.7, 0.6]),
        "presence": st.sampled_from([0.0, 0.9, -0.4]),
        "frequency": st.sampled_from([0.0, 0.23]),
        "history": st.dictionaries(st.integers(0, WIDTH - 1), st.integers(1, 4), max_size=6),
    }
)


@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(0, 999), st.booleans(), st.sampled_from(["f32", "f16"]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sample_follows_the_pinned_order(session: Any, rows: list[dict], seed: int, ties: bool, dtype: str):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-4, 5, (len(rows), WIDTH)) / 2 if ties else rng.standard_normal((len(rows), WIDTH)) * 2
    array = session.upload(logits, dtype)
    names = ("temperature", "top_p", "min_p", "uniform", "repetition", "presence", "frequency")
    counts = [len(row["history"]) for row in rows]
    batch = SampleBatch(
        **{name: np.array([row[name] for row in rows], np.float32) for name in names},
        top_k=np.array([row["top_k"] for row in rows], np.int32),
        history_indptr=np.concatenate([[0], np.cumsum(counts)]),
        history_ids=np.array([t for row in rows for t in row["history"]], np.int64),
        history_counts=np.array([c for row in rows for c in row["history"].values()], np.int32),
    )
    before = session.download(array)
    got = session.download(session.plan(Request(SampleSpec(WIDTH, dtype)), batch).run(array))
    for r, row in enumerate(rows):
        token, margin = _choose(before[r], row)
        if margin > 1e-4 and not (ties and row["history"]):
            assert got[r] == token
    np.testing.assert_array_equal(session.download(array), before)


def test_drawn_tokens_follow_their_probabilities(session: Any):
    count = 2000
    logits = np.log(np.array([0.1, 0.45, 0.0, 0.25, 0.2]) + 1e-30).astype(np.float32)
    one = np.ones(count, np.float32)
    batch = SampleBatch(
        one, np.zeros(count, int), one, 0 * one, (np.arange(count) + 0.5) / count, one, 0 * one, 0 * one,
        np.zeros(count + 1, int), np.zeros(0, int), np.zeros(0, int),
    )  # fmt: skip
    plan = session.plan(Request(SampleSpec(5)), batch)
    got = session.download(plan.run(session.upload(np.tile(logits, (count, 1)))))
    np.testing.assert_allclose(np.bincount(got, minlength=5) / count, [0.1, 0.45, 0, 0.25, 0.2], atol=1e-3)
