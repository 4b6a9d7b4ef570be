"""A captured run's own launches, grids and all, serve later batches: what a chip's graph would run again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    Bounds,
    CacheSpec,
    ContractError,
    DeviceInfo,
    KVFormat,
    Request,
    Session,
    SessionOptions,
)
from opsocket_cuda.backend import CudaBackend
from opsocket_simulated import memory
from opsocket_triton import mode

DEVICE = DeviceInfo("cuda", 0, "sm_90", "sm_90", 1 << 30, numerics="interpreted")
CACHE = CacheSpec(24, 16, 2, 16, 16, KVFormat("f32"), KVFormat("f32"))
SPEC = AttentionSpec(6, 2, 16, 16, 0.25, want_lse=True)


@pytest.fixture(scope="module")
def session() -> Session:
    if why := mode.unprotected() or memory.absence():
        pytest.skip(why)
    return CudaBackend().open(DEVICE, SessionOptions())


@pytest.fixture
def launches(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """Every launch of attention's, as it was made."""
    session.supports(Request(SPEC, CACHE))  # has the kernels made for the interpreter
    from opsocket_triton.attention import plan

    made: list[tuple[Any, Any, Any]] = []
    launch = plan.launch

    def recording(kernel: Any, grid: Any, **args: Any) -> None:
        made.append((kernel, grid, args))
        launch(kernel, grid, **args)

    monkeypatch.setattr(plan, "launch", recording)
    return made


def _batch(rng: np.random.Generator, *lengths: tuple[int, int]) -> AttentionBatch:
    q_lens, kv_lens = (np.array(column) for column in zip(*lengths, strict=True))
    table = rng.integers(0, CACHE.num_blocks, (len(lengths), 24)).astype(np.int32)
    return AttentionBatch(np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32), kv_lens.astype(np.int32), table)


def test_frozen_launches_serve_batches_of_other_lengths(session: Session, launches: list[Any]) -> None:
    rng = np.random.default_rng(0)
    request = Request(SPEC, CACHE, bounds=Bounds(9, 3, 8, 384))
    cache = session.allocate_cache(CACHE)
    for plane in cache.planes.values():
        session.write(plane, rng.standard_normal(plane.shape).astype(np.float32))
    q = session.upload(rng.standard_normal((9, 6, 16)).astype(np.float32))
    captured, eager = session.plan(request), session.plan(request)
    out, lse = session.empty((9, 6, 16), "f32"), session.empty((9, 6), "f32")
    captured.update(_batch(rng, (1, 7), (1, 30), (1, 2)))
    launches.clear()
    with session.capture():
        captured.run(q, cache, out=out, lse_out=lse)
    frozen = list(launches)
    # Few keys and no parts, many of both, a chunk of more rows than a small tile has, and no sequence at all.
    for lengths in (((1, 9), (1, 1)), ((1, 380), (1, 384), (1, 200)), ((8, 350), (1, 3)), ((0, 5),)):
        batch = _batch(rng, *lengths)
        captured.update(batch)
        eager.update(batch)
        for array in (out, lse):
            session.write(array, np.full(array.shape, np.nan, np.float32))
        for kernel, grid, args in frozen:
            _launch(kernel, grid, args)
        want, want_lse = eager.run(q, cache)
        count = int(batch.q_indptr[-1])
        np.testing.assert_array_equal(session.download(out)[:count], session.download(want)[:count])
        np.testing.assert_array_equal(session.download(lse)[:count], session.download(want_lse)[:count])
        assert np.isnan(session.download(out)[count:]).all()


def _launch(kernel: Any, grid: Any, args: Any) -> None:
    from opsocket_triton.launch import launch

    launch(kernel, grid, **args)


def test_a_batch_beyond_what_a_graph_holds_is_refused_and_one_of_no_graph_is_not(session: Session) -> None:
    rng = np.random.default_rng(1)
    plan = session.plan(Request(SPEC, CACHE))  # without bounds: room for the batches it has seen
    cache, q = session.allocate_cache(CACHE), session.upload(np.zeros((2, 6, 16), np.float32))
    for plane in cache.planes.values():
        session.write(plane, np.zeros(plane.shape, np.float32))
    first, longer = _batch(rng, (1, 20), (1, 16)), _batch(rng, (1, 384), (1, 384))
    plan.update(first)
    with session.capture() as graph:
        plan.run(q, cache, out=session.empty((2, 6, 16), "f32"), lse_out=session.empty((2, 6), "f32"))
    with pytest.raises(ContractError, match="a graph holds"):
        plan.update(longer)
    assert plan.batch is first
    graph.replay()
    del graph
    plan.update(longer)
    plan.run(q, cache)
