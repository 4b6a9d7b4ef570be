"""Choices that the list of likely tokens can't decide, and histories that come and go under one plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opsocket.operators import DeviceInfo, Request, SampleBatch, SampleSpec, Session, SessionOptions
from opsocket_cuda.backend import CudaBackend

DEVICE = DeviceInfo("cuda", 0, "sm_90", "sm_90", 1 << 30, numerics="interpreted")
WIDTH = 4500  # more than the list has places for


@pytest.fixture(scope="module")
def session() -> Session:
    return CudaBackend().open(DEVICE, SessionOptions())


def batch(rows: int, history: list[tuple[int, ...]] | None = None, **settings: Any) -> SampleBatch:
    plain = {"temperature": 1, "top_p": 1, "min_p": 0, "uniform": 0, "repetition": 1, "presence": 0, "frequency": 0}
    values = {name: np.full(rows, settings.get(name, value), np.float32) for name, value in plain.items()}
    history = history or [()] * rows
    return SampleBatch(
        **values,
        top_k=np.full(rows, settings.get("top_k", 0), np.int32),
        history_indptr=np.cumsum([0, *map(len, history)]),
        history_ids=np.array([token for row in history for token in row], np.int64),
        history_counts=np.ones(sum(map(len, history)), np.int32),
    )


def sampled(session: Session, logits: np.ndarray, given: SampleBatch) -> list[int]:
    plan: Any = session.plan(Request(SampleSpec(logits.shape[1])), given)
    return session.download(plan.run(session.upload(logits))).tolist()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, WIDTH), ({"top_k": 4200}, 4200), ({"top_p": 0.5}, 2250), ({"top_k": 3200, "top_p": 0.375}, 1200)],
    ids=str,
)
def test_equal_logits_are_taken_by_index(session, settings, kept):
    places = np.array([0, kept // 3, kept - 1])
    given = batch(3, uniform=(places + 0.5) / kept, **settings)
    assert sampled(session, np.full((3, WIDTH), 1.5, np.float32), given) == places.tolist()


def test_falling_order_far_below_the_largest(session):
    """A third of the mass lies in 3000 tokens of less than 2^-13 of the largest probability."""
    rng = np.random.default_rng(0)
    tail = np.log(rng.permutation(np.arange(1, 3001)) * 1e-7)
    logits = np.concatenate([tail[:700], [0.0], tail[700:]])
    weights = np.exp(logits)
    order = np.argsort(-weights)
    places = np.array([0, 1, 40, 2000])
    mass = np.cumsum(weights[order]) / weights.sum()
    before = np.concatenate([[0.0], mass])[places]
    uniform = (before + mass[places]) / 2
    rows = np.repeat(logits[None].astype(np.float32), 4, axis=0)
    assert sampled(session, rows, batch(4, uniform=uniform)) == order[places].tolist()
    assert sampled(session, rows, batch(4, uniform=0.99999, top_k=places + 1)) == order[places].tolist()


def test_the_last_batch_leaves_no_history(session):
    logits = np.zeros((2, 50), np.float32)
    logits[:, (7, 9)] = (2.0, 1.5)
    plan: Any = session.plan(Request(SampleSpec(50)))
    x = session.upload(logits)
    for history, want in (
        ([(7,), ()], [9, 7]),
        ([(), (7, 3)], [7, 9]),
        ([(9,), (9,)], [7, 7]),
        ([(7, 9), (7, 9, 0, 1)], [0, 2]),
        (None, [7, 7]),
    ):
        plan.update(batch(2, history, temperature=0, presence=2))
        assert session.download(plan.run(x)).tolist() == want
