"""Batches as sequences whose queries are the last of their keys: every query sees what the interface says, no more."""

import numpy as np
import pytest

from opsocket.operators import AttentionBatch, AttentionSpec, CacheSpec, KVFormat
from opsocket_ascend.torch_npu_provider.sequences import refusals, sequences

BF16, BLOCK, WIDTH = KVFormat("bf16"), 256, 4
CACHE = CacheSpec(64, BLOCK, 1, 64, 64, BF16, BF16)


def spec(mask="causal", left=None):
    return AttentionSpec(4, 1, 64, 64, 0.125, mask, left)


def batch_of(rng, rows, **more):
    """rows: (q_len, kv_len) each."""
    q_lens, kv_lens = np.array(rows).T
    table = rng.permutation(CACHE.num_blocks)[: len(rows) * WIDTH].reshape(len(rows), WIDTH).astype(np.int32)
    used = -(-kv_lens // BLOCK)
    table = np.where(np.arange(WIDTH) < used[:, None], table, -7)
    ends = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    return AttentionBatch(ends, kv_lens.astype(np.int32), table, **more)


def meant(batch, spec):
    """Per row of q, the slots that it sees, by the interface's own words."""
    seen = []
    starts = np.broadcast_to(np.asarray(batch.kv_start), len(batch.kv_lens))
    for at, (first, last) in enumerate(zip(batch.q_indptr[:-1], batch.q_indptr[1:], strict=True)):
        for i in range(last - first):
            if batch.q_positions is not None:
                p = int(batch.q_positions[first + i])
            elif batch.q_start is not None:
                p = int(batch.q_start[at]) + i
            else:
                p = int(starts[at] + batch.kv_lens[at] - (last - first)) + i
            keys = range(int(batch.kv_lens[at]))
            if spec.mask == "causal":
                keys = [j for j in keys if starts[at] + j <= p]
            if spec.window_left is not None:
                keys = [j for j in keys if starts[at] + j >= p - spec.window_left]
            seen.append({int(batch.block_table[at, j // BLOCK]) * BLOCK + j % BLOCK for j in keys})
    return seen


def told(got, spec, count):
    """The same of what the operator is told: aligned at the end, and no mask where a sequence has one query."""
    returned, start = [], 0
    for at, (end, kv_len) in enumerate(zip(got.q_ends, got.kv_lens, strict=True)):
        n = end - start
        assert n <= kv_len or not got.is_masked, "more queries than keys"
        for i in range(n):
            last = kv_len - n + i if got.is_masked and n > 1 else kv_len - 1
            first = 0
            if spec.window_left is not None and got.is_masked and n > 1:
                first = max(0, last - spec.window_left)
            returned.append({int(got.table[at, j // 128]) * 128 + j % 128 for j in range(first, last + 1)})
        start = end
    given = np.arange(count) if got.given is None else got.given
    assert len(returned) == (len(given) if got.given is not None else got.q_ends[-1] if got.q_ends else 0)
    if got.wanted is not None:
        returned = [returned[i] for i in got.wanted]
    written = range(len(returned)) if got.written is None else got.written
    seen = {int(row): slots for row, slots in zip(written, returned, strict=True)}
    assert not set(seen) & set(got.empty.tolist())
    return [seen.get(row, set()) for row in range(count)], set(seen) | set(got.empty.tolist())


ROWS = {
    "decode": [(1, 300), (1, 1), (1, 129), (0, 40), (1, 1000)],
    "prefill": [(17, 17), (0, 0), (1, 1), (129, 129)],
    "chunk": [(40, 300), (2, 500), (33, 40)],
    "more queries than keys": [(5, 3), (17, 1), (1, 0), (3, 3)],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(
    ("mask", "left", "longest"),
    [("causal", None, n) for n in (None, 16, 1)]
    + [("causal", left, n) for left in (0, 7, 200) for n in (None, 16)]
    + [("full", None, n) for n in (None, 1)],
)
def test_every_query_sees_its_keys(rows, mask, left, longest):
    batch, asked = batch_of(np.random.default_rng(0), rows), spec(mask, left)
    assert not refusals(batch, asked)
    got = sequences(batch, asked, CACHE, longest)
    seen, covered = told(got, asked, int(batch.q_indptr[-1]))
    assert seen == meant(batch, asked)
    assert covered == set(range(int(batch.q_indptr[-1])))
    assert max(np.diff([0, *got.q_ends])) <= (longest or 129)


@pytest.mark.parametrize("seed", range(30))
def test_queries_wherever_they_stand(seed):
    rng = np.random.default_rng(seed)
    rows = [(int(rng.integers(0, 9)), int(rng.integers(0, 20))) for _ in range(4)]
    starts = rng.integers(0, 50, 4).astype(np.int32)
    count = sum(q for q, _ in rows)
    where = {"kv_start": starts, "q_start": (starts + rng.integers(-5, 25, 4)).astype(np.int32)}
    if seed % 3 == 0:
        where = {"kv_start": starts, "q_positions": rng.integers(0, 70, count).astype(np.int32)}
    batch = batch_of(rng, rows, **where)
    for mask in ("causal", "full"):
        got = sequences(batch, spec(mask), CACHE, None)
        assert told(got, spec(mask), count)[0] == meant(batch, spec(mask))


def test_a_plain_batch_is_given_as_it_is():
    batch = batch_of(np.random.default_rng(0), ROWS["chunk"])
    got = sequences(batch, spec(), CACHE, None)
    assert got.q_ends == [40, 42, 75]
    assert got.kv_lens == [300, 500, 40]
    assert (got.given, got.wanted, got.written, got.empty.size) == (None, None, None, 0)


def test_pages_left_of_every_window_are_not_read():
    batch = batch_of(np.random.default_rng(0), [(1, 1000)])
    assert sequences(batch, spec(left=5), CACHE, None).kv_lens == [1000 - 7 * 128]


def test_what_sequences_can_not_say_is_refused():
    rows = [(3, 10)]
    inexact = batch_of(np.random.default_rng(0), rows, host_exact=False)
    assert [r.field for r in refusals(inexact, spec())] == ["batch.host_exact"]
    past = batch_of(np.random.default_rng(0), rows, q_start=np.array([9], np.int32))
    assert not refusals(past, spec())
    assert [r.field for r in refusals(past, spec(left=7))] == ["batch.q_start"]
