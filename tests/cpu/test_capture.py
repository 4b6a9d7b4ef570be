"""A captured decode step on the CPU gives, replayed with other batches, the bits that its plans give eagerly."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

import opsocket
from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
    AttentionBatch,
    AttentionSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    EmbeddingSpec,
    KVFormat,
    MatmulSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SiluMulSpec,
    SlotBatch,
    TakeRowsSpec,
)
from opsocket.quantization import get_format, quantize

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


def test_an_eager_run_after_an_observed_replay_of_some_rows_is_of_all():
    """An observer has runs made one by one: what is taken down of them to be repeated must not be of some rows."""
    with opsocket.open("cpu", threads=1) as session:
        add, x, out = session.plan(Request(AddSpec(8))), session.empty((4, 8), "f32"), session.empty((4, 8), "f32")
        session.write(x, np.ones((4, 8), np.float32))
        with session.capture({4: 2}) as graph:
            add.run(x, x, out=out)
        session.observer = lambda _: contextlib.nullcontext()
        for _ in range(3):
            graph.replay({4: 1})
        session.observer = None
        out.zero_()
        add.run(x, x, out=out)
        assert (out == 2).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_operators_of_a_graph_run_on_any_number_of_rows(threads: int):
    """What a replay of some rows gives is what eager runs on them give, and no other row is touched."""
    rng, rows, width = np.random.default_rng(1), 9, 64

    def weight(request: Request, n: int) -> Any:
        values = rng.standard_normal((n, width)).astype(np.float32)
        return session.prepare_weight(request, quantize(get_format(request.spec.weight_format), values))

    with opsocket.open("cpu", threads=threads) as session:
        requests = [Request(EmbeddingSpec("q8_0", 40, width))]
        requests += [Request(MatmulSpec(name, width, width)) for name in ("f32", "q8_0", "q4_1_a8")]
        table, *weights = [weight(request, request.spec.n) for request in requests]
        embedding, *matmuls = [session.plan(request) for request in requests]
        norm, added_norm = [session.plan(Request(RMSNormSpec(width, 1e-5, residual=r))) for r in (False, True)]
        heads_norm = session.plan(Request(RMSNormSpec(16, 1e-5, heads=4)))
        rope, argmax = session.plan(Request(RopeSpec(4, 16, 16, 1e4))), session.plan(Request(ArgmaxSpec(width)))
        silu_mul, add, take = [session.plan(Request(spec(width))) for spec in (SiluMulSpec, AddSpec, TakeRowsSpec)]
        gain, head_gain = [session.upload(rng.standard_normal(n).astype(np.float32)) for n in (width, 16)]
        ids, positions = [session.upload(rng.integers(0, 40, rows)) for _ in range(2)]
        picked = session.upload(rng.integers(0, rows, 4))
        x = session.upload(rng.standard_normal((rows, width)).astype(np.float32))

        def run(count: int, few: int, outs: list[Any]) -> None:
            given, out = x[:count], iter(outs)
            embedding.run(ids[:count], table, out=next(out)[:count])
            for plan, packed in zip(matmuls, weights, strict=True):
                plan.run(given, packed, out=next(out)[:count])
            norm.run(given, gain, out=next(out)[:count])
            added_norm.run(given, gain, given, out=next(out)[:count], residual_out=next(out)[:count])
            heads = session.view(given, (count, 4, 16))
            heads_norm.run(heads, head_gain, out=session.view(next(out)[:count], (count, 4, 16)))
            rope.run(heads, positions[:count], out=session.view(next(out)[:count], (count, 4, 16)))
            silu_mul.run(given, given, out=next(out)[:count])
            add.run(given, given, out=next(out)[:count])
            argmax.run(given, out=next(out)[:count])
            take.run(x, picked[:few], out=next(out)[:few])

        def poisoned() -> list[Any]:
            wide = [session.upload(np.full((rows, width), np.nan, np.float32)) for _ in range(11)]
            taken = session.upload(np.full((4, width), np.nan, np.float32))
            return [*wide, session.upload(np.full(rows, -7)), taken]

        outs, graph = poisoned(), None
        for count, few in ((5, 2), (9, 4), (1, 1), (0, 0), (8, 3), (2, 4)):
            want = poisoned()
            run(count, few, want)
            for array, clean in zip(outs, poisoned(), strict=True):
                array.copy_(clean)
            if graph is None:
                with session.capture({rows: count, 4: few}) as graph:
                    run(rows, 4, outs)
            else:
                graph.replay({rows: count, 4: few})
            for got, expected in zip(outs, want, strict=True):
                np.testing.assert_array_equal(session.download(got), session.download(expected))
