"""What a batch becomes on the device stays where it is from step to step, as a graph that has recorded it needs."""

import numpy as np
import pytest

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    Bounds,
    CacheSpec,
    CacheWriteSpec,
    KVFormat,
    Numerics,
    Request,
    SlotBatch,
    Unsupported,
)

BF16 = KVFormat("bf16")
CACHE = CacheSpec(8, 128, 2, 64, 64, BF16, BF16)
KINDS = dict.fromkeys(("q_dtype", "kv_dtype", "out_dtype"), "bf16")
FAST = Numerics("bf16", "approx", accumulate="f32_truncating")
BOUNDS = Bounds(max_tokens=8, max_batch=4, max_q_len=4, max_kv_len=512)


def attention(**fields):
    return Request(AttentionSpec(14, 2, 64, 64, 0.125, numerics=FAST, **KINDS, **fields), CACHE, bounds=BOUNDS)


def batch(q_lens, kv_lens, **more):
    ends = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    table = np.arange(len(kv_lens) * 2, dtype=np.int32).reshape(-1, 2)
    return AttentionBatch(ends, np.array(kv_lens, np.int32), table, **more)


@pytest.fixture
def called():
    """Arguments of the vendor's calls, as they are made."""
    from opsocket_ascend.emulator import calls

    seen = []
    end = calls.observe(lambda operator, arguments: seen.append((operator, arguments)))
    yield seen
    end()


def test_tables_and_slots_stay_at_their_address(session, called):
    attend, write = session.plan(attention()), session.plan(Request(CacheWriteSpec("bf16"), CACHE, bounds=BOUNDS))
    cache = session.allocate_cache(CACHE)
    q = session.upload(np.ones((8, 14, 64), np.float32), "bf16")
    k = session.upload(np.ones((8, 2, 64), np.float32), "bf16")
    for slots, step in (
        (np.arange(8), batch([1, 1, 1], [5, 130, 7])),
        (np.array([9, 300]), batch([2, 1], [200, 3])),
        (np.array([4, 5, -1]), batch([1, 1, 1, 1], [1, 2, 3, 256])),
    ):
        write.update(SlotBatch(slots))
        write.run(cache, k, k)
        attend.update(step)
        attend.run(q, cache)
    for operator, argument in (("FusedInfer", "block_table"), ("ScatterPaKvCache", "slots")):
        found = {arguments[argument].data for name, arguments in called if operator in name}
        assert len(found) == 1, argument


def test_a_batch_that_no_sequences_can_say_is_refused_and_the_one_before_stays(session):
    plan = session.plan(attention(window_left=7), batch([1], [5]))
    before = plan.batch
    for refused in (batch([2], [5], q_start=np.array([5], np.int32)), batch([1], [5], host_exact=False)):
        with pytest.raises(Unsupported):
            plan.update(refused)
        assert plan.batch is before
