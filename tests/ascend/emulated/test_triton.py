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
    MoECombineSpec,
    Request,
    SlotBatch,
)
from opsocket_ascend.hivm import lower
from opsocket_ascend.verification.ladder import AscendLadder

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
            assert graph.made_again == ()
        step(sides[0], merged[0])
        results = [session.download(out) for out in merged]
        assert np.isfinite(results[0]).all()
        np.testing.assert_array_equal(*results)


def merge_once(session):
    merge = session.plan(Request(MergeStatesSpec(3, 64, "bf16", "f32")))
    parts = session.upload(np.zeros((2, 5, 3, 64), np.float32), "bf16")
    merge.run(parts, session.upload(np.zeros((2, 5, 3), np.float32)))


def combine_once(session):
    """Of two tiles to a token, and more of them than cores."""
    combine = session.plan(Request(MoECombineSpec(2056, 2, "bf16")))
    rng = np.random.default_rng(0)
    x, slots, weights = rng.integers(-8, 8, (66, 2056)), rng.permutation(66).reshape(33, 2), rng.integers(0, 3, (33, 2))
    arrays = session.upload(x.astype(np.float32), "bf16"), session.upload(slots)
    y = combine.run(*arrays, session.upload(weights.astype(np.float32)))
    np.testing.assert_array_equal(session.download(y), (weights[..., None] * x[slots]).sum(1))


@pytest.mark.parametrize(
    ("run", "kernel"),
    [(merge_once, "merge_kernel:merge_heads"), (combine_once, "combine_kernel:combine_tokens")],
    ids=["merge_states", "moe_combine"],
)
def test_a_launch_is_lowered_for_every_chip_that_has_the_compilers(session, run, kernel):
    from opsocket_triton import launch

    launch.take_down()
    run(session)
    (made,) = launch.taken()
    ladder, record = AscendLadder(), made.dumps()
    assert ladder.kind_of(record) == "compiled"
    assert ladder.kernel_of(record) == f"opsocket_ascend.triton_provider.{kernel}"
    if lower.python() is None:
        pytest.skip(f"no compilers for Ascend here: {lower.HOW}")
    chips = [chip for chip in ladder.arches if lower.is_target(chip)]
    told = []
    artifacts = ladder.make([(record, chip) for chip in chips], 1, told.append)
    assert told == list(artifacts)
    assert [(artifact.arch, artifact.problems) for artifact in artifacts] == [(chip, ()) for chip in chips]
