"""Choices sorted in several blocks, by experts that nobody chose, and combined again: what conformance does not ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.operators import (
    DeviceInfo,
    MoECombineSpec,
    MoESortSpec,
    Request,
    Session,
    SessionOptions,
    TakeRowsSpec,
)
from opsocket_cuda.backend import CudaBackend

DEVICE = DeviceInfo("cuda", 0, "sm_90", "sm_90", 1 << 30, numerics="interpreted")


@pytest.fixture(scope="module")
def session() -> Session:
    return CudaBackend().open(DEVICE, SessionOptions())


def plan(session: Session, spec: Any) -> Any:
    made = session.plan(Request(spec))
    assert made.provider == "triton"
    return made


def check_sorted(session: Session, experts: np.ndarray, count: int) -> None:
    sort = plan(session, MoESortSpec(count, experts.shape[1]))
    rows, offsets, slots = map(session.download, sort.run(session.upload(experts)))
    order = np.argsort(experts, axis=None, kind="stable")
    np.testing.assert_array_equal(rows, order // experts.shape[1])
    np.testing.assert_array_equal(offsets, np.searchsorted(experts.flat[order], np.arange(count + 1)))
    np.testing.assert_array_equal(slots.flat[order], np.arange(experts.size))


@settings(max_examples=30)
@given(
    st.integers(1, 12).flatmap(
        lambda count: st.tuples(
            st.just(count), st.integers(1, count), st.integers(0, 40), st.lists(st.integers(0, count - 1), min_size=1)
        )
    )
)
def test_any_choices_are_sorted(session, case):
    count, top_k, tokens, chosen = case
    check_sorted(session, np.resize(np.array(chosen, np.int64), (tokens, top_k)), count)


@pytest.mark.parametrize("choices", [1, 127, 128, 129, 2047, 2048, 2049, 4096, 6151])
@pytest.mark.parametrize("what", ["any", "first", "last"])
def test_choices_at_the_edges_of_blocks(session, choices, what):
    experts = {"any": np.random.default_rng(choices).integers(0, 5, choices), "first": 0, "last": 4}[what]
    check_sorted(session, np.broadcast_to(experts, choices).reshape(-1, 1).astype(np.int64), 5)


@pytest.mark.parametrize("count", [1, 60, 257, 1025])
def test_of_no_tokens_every_offset_is_0(session, count):
    rows, offsets, slots = plan(session, MoESortSpec(count, 1)).run(session.upload(np.empty((0, 1), np.int64)))
    assert session.download(offsets).tolist() == [0] * (count + 1)
    assert session.describe(rows).shape == (0,)
    assert session.describe(slots).shape == (0, 1)


def test_what_was_sorted_and_combined_is_where_it_was(session):
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 8, (300, 40)).astype(np.float32)
    weights = rng.integers(0, 4, (300, 8)).astype(np.float32)
    experts = rng.permuted(np.broadcast_to(np.arange(23), (300, 23)), axis=1)[:, :8]
    rows, _, slots = plan(session, MoESortSpec(23, 8)).run(session.upload(np.ascontiguousarray(experts)))
    taken = plan(session, TakeRowsSpec(40, "f32")).run(session.upload(x), rows)
    y = plan(session, MoECombineSpec(40, 8, "f32")).run(taken, slots, session.upload(weights))
    np.testing.assert_array_equal(session.download(y), x * weights.sum(1, keepdims=True))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("width", "top_k"), [(1, 1), (1024, 2), (1025, 3), (97, 8)])
def test_a_token_has_the_same_bits_beside_any_others(session, dtype, width, top_k):
    rng = np.random.default_rng(width)
    combine = plan(session, MoECombineSpec(width, top_k, dtype))
    x = session.upload(rng.standard_normal((9 * top_k, width)).astype(np.float32), dtype)
    slots, weights = rng.permutation(9 * top_k).reshape(9, top_k), rng.standard_normal((9, top_k)).astype(np.float32)
    together = session.download(combine.run(x, session.upload(slots), session.upload(weights)))
    for token in range(9):
        one = slice(token, token + 1)
        alone = session.download(combine.run(x, session.upload(slots[one]), session.upload(weights[one])))
        assert alone.tobytes() == together[one].tobytes()


def test_terms_are_added_in_the_order_of_the_choices(session):
    """2^24 swallows a 1 that is added after it, and not two of them that came before."""
    combine = plan(session, MoECombineSpec(1, 3, "f32"))
    x = session.upload(np.array([[2.0**24], [1.0], [1.0]], np.float32))
    slots = np.array([[0, 1, 2], [1, 2, 0]])
    y = combine.run(x, session.upload(slots), session.upload(np.ones((2, 3), np.float32)))
    assert session.download(y).ravel().tolist() == [2.0**24, 2.0**24 + 2]
