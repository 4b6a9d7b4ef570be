"""Our own Triton kernels on the emulated NPU: what conformance does not ask of them."""

import numpy as np
import pytest

from opsocket.operators import (
    Bounds,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    KVFormat,
    MergeStatesSpec,
    Request,
    SlotBatch,
)

I8 = KVFormat("i8", "token_head")
CACHE = CacheSpec(4, 16, 3, 64, 64, I8, I8)


@pytest.fixture
def interpreting():
    pytest.importorskip("triton", reason="Triton interprets these kernels: make ascend-emulator has it")


pytestmark = pytest.mark.usefixtures("interpreting")


def rows(session, seed, count=5):
    values = np.random.default_rng(seed).standard_normal((count, CACHE.num_kv_heads, 64)).astype(np.float32)
    return session.upload(values, "bf16")


def test_graphs_keep_their_launches_and_replay_them_on_what_memory_holds_then(session):
    write = session.plan(Request(CacheWriteSpec("bf16"), CACHE, bounds=Bounds(max_tokens=8)))
    read = session.plan(Request(CacheReadSpec("f32"), CACHE, bounds=Bounds(max_tokens=8)))
    merge = session.plan(Request(MergeStatesSpec(3, 64, "f32", "f32")))
    assert {plan.provider for plan in (write, read, merge)} == {"triton"}
    sides = [session.allocate_cache(CACHE) for _ in range(2)]
    k, lses = rows(session, 0), session.upload(np.zeros((1, 5, 3), np.float32))
    merged = [session.empty((5, 3, 64), "f32") for _ in range(2)]

    def step(cache, out):
        write.run(cache, k, k)
        found, _ = read.run(cache)
        merge.run(found[None], lses, out=out)

    slots = [[0, 17, 34, 51, 63], [1, 16, 33, 50, 62], [5, 4, 3, 2, 1]]
    graph = None
    for seed, batch in enumerate(slots):
        write.update(SlotBatch(np.array(batch)))
        read.update(SlotBatch(np.array(batch)))
        k.copy_(rows(session, seed))
        merged[1].fill_(np.nan)
        if graph is None:
            with session.capture() as graph:
                step(sides[1], merged[1])
        else:
            graph.replay()
            assert graph.repeated == ()
        step(sides[0], merged[0])
        results = [session.download(out) for out in merged]
        assert np.isfinite(results[0]).all()
        np.testing.assert_array_equal(*results)
