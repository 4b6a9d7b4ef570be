"""A captured decode step on the CPU gives, replayed with other batches, the bits that its plans give eagerly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import opsocket
from opsocket.operators import (
    AddSpec,
    AttentionBatch,
    AttentionSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    KVFormat,
    MatmulSpec,
    Request,
    RMSNormSpec,
    SlotBatch,
)

WIDTH, HEADS, DIM = 48, 4, 12


def test_a_replayed_step_is_the_eager_step(session: Any, deal_blocks: Any):
    rng, fmt = np.random.default_rng(0), KVFormat("i8", "token_head")
    spec = CacheSpec(20, 4, HEADS, DIM, DIM, fmt, fmt)
    project = Request(MatmulSpec("f32", WIDTH, WIDTH))
    weights = [
        session.prepare_weight(project, {"weight": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)})
        for _ in range(2)
    ]
    norm, matmul = session.plan(Request(RMSNormSpec(WIDTH, 1e-5, residual=True))), session.plan(project)
    write, attention = (
        session.plan(Request(op, spec)) for op in (CacheWriteSpec(), AttentionSpec(HEADS, HEADS, DIM, DIM, 0.3))
    )
    gain = session.upload(np.ones(WIDTH, np.float32))

    def step(cache: Any, x: Any, residual: Any, outs: list[Any]) -> Any:
        _, added = norm.run(x, gain, residual, out=outs[0])
        matmul.run(outs[0], weights[0], out=outs[1])
        heads = session.view(outs[1], (3, HEADS, DIM))
        write.run(cache, heads, heads)
        attention.run(heads, cache, out=outs[2])
        matmul.run(session.view(outs[2], (3, WIDTH)), weights[1], out=outs[3])
        return added

    def arrays() -> list[Any]:
        return [session.empty(shape, "f32") for shape in ((3, WIDTH), (3, WIDTH), (3, HEADS, DIM), (3, WIDTH))]

    eager_cache, cache, outs = session.allocate_cache(spec), session.allocate_cache(spec), arrays()
    x, residual = (session.empty((3, WIDTH), "f32") for _ in range(2))
    graph = added = None
    for kv_lens in ([1, 1, 1], [5, 9, 1], [2, 2], [13, 1, 7]):
        table, slots = deal_blocks(rng, kv_lens, 4, 20)
        write.update(SlotBatch(np.array([s[-1] for s in slots])))
        attention.update(AttentionBatch(np.arange(len(kv_lens) + 1), np.array(kv_lens), table))
        for array in (x, residual):
            session.write(array, rng.standard_normal((3, WIDTH)).astype(np.float32))
        eager = arrays()
        eager_added = step(eager_cache, x, residual, eager)
        if graph is None:
            with session.capture() as graph:
                added = step(cache, x, residual, outs)
        else:
            graph.replay()
        rows = len(kv_lens)
        for got, want in zip([*outs, added], [*eager, eager_added], strict=True):
            np.testing.assert_array_equal(session.download(got)[:rows], session.download(want)[:rows])
        for name, plane in cache.planes.items():
            assert (plane == eager_cache.planes[name]).all()


def test_a_graph_of_a_closed_session_is_not_replayed():
    with opsocket.open("cpu", threads=1) as session:
        plan, x, out = session.plan(Request(AddSpec(8))), session.empty((1, 8), "f32"), session.empty((1, 8), "f32")
        session.write(x, np.ones((1, 8), np.float32))
        begun = session.capture()
        with session.capture() as graph:
            plan.run(x, x, out=out)
        out.zero_()
    with pytest.raises(ContractError, match="a closed session"):
        graph.replay()
    with pytest.raises(ContractError, match="a closed session"), begun:
        pass
    assert not out.any()
