"""A batch as items: every row meets every key that it may see exactly once, and lists fit what was reserved."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.operators import AttentionBatch, AttentionSpec, CacheSpec, KVFormat
from opsocket_triton.attention.schedule import HEADER, ITEM, MERGE, SMALL_ROWS, Schedule, Tiling, schedule, window

Items = np.ndarray


def _batch(rng: np.random.Generator, block_size: int, mask: str) -> AttentionBatch:
    size = int(rng.integers(0, 7))
    q_lens = rng.choice([0, 1, 1, 2, 5, 40, 100], size)
    kv_lens = rng.choice([0, 1, 16, 130, 700, 5000], size) + (q_lens if mask == "tree" else 0)
    starts = np.concatenate([[0], np.cumsum(q_lens)])
    width = -(-int(kv_lens.max(initial=0)) // block_size) + 2
    extra = {}
    if rng.random() < 0.5:
        extra["kv_start"] = rng.integers(0, 100, size).astype(np.int32)
    if mask == "tree":
        extra["mask_indptr"] = np.concatenate([[0], np.cumsum((q_lens**2 + 7) // 8)]) + 2**40 * (size > 0)
        extra["q_positions"] = rng.integers(0, 800, starts[-1]).astype(np.int32)
    elif rng.random() < 0.5:
        extra["q_start"] = rng.integers(-3, 900, size).astype(np.int32)
    table = rng.integers(0, 1000, (size, width)).astype(np.int32)
    return AttentionBatch(starts.astype(np.int32), kv_lens.astype(np.int32), table, **extra)


def _positions(batch: AttentionBatch, request: int) -> np.ndarray:
    first, last = batch.q_indptr[request : request + 2]
    kv_start = int(np.broadcast_to(batch.kv_start, batch.kv_lens.shape)[request])
    if batch.q_positions is not None:
        return batch.q_positions[first:last].astype(np.int64) - kv_start
    start = int(batch.kv_lens[request]) - (last - first) if batch.q_start is None else batch.q_start[request] - kv_start
    return start + np.arange(last - first)


def _lists(made: Schedule) -> tuple[Items, Items, Items]:
    small, items, large, large_at, merges, merges_at = made.ints[:6]
    assert (small, large, merges) == (made.small, made.large, made.merges)
    return (
        made.ints[items : items + ITEM * small].reshape(-1, ITEM),
        made.ints[large_at : large_at + ITEM * large].reshape(-1, ITEM),
        made.ints[merges_at : merges_at + MERGE * merges].reshape(-1, MERGE),
    )


def _cases() -> list[tuple[int, str]]:
    return [(seed, mask) for seed in range(40) for mask in ("causal", "full", "tree")]


@pytest.mark.parametrize(("seed", "mask"), _cases())
def test_every_row_meets_its_keys_once_and_parts_lie_apart(seed: int, mask: str) -> None:
    rng = np.random.default_rng(seed)
    group, block_size = int(rng.choice([1, 3, 8, 40])), int(rng.choice([1, 16, 24]))
    left = None if rng.random() < 0.5 else int(rng.integers(0, 300))
    right = 5 if mask == "full" and rng.random() < 0.5 else None
    spec = AttentionSpec(2 * group, 2, 64, 64, 1.0, mask=mask, window_left=left, window_right=right)
    cache = CacheSpec(1000, block_size, 2, 64, 64, KVFormat("f32"), KVFormat("f32"))
    tiling = Tiling(int(rng.choice([16, 64])), 32, int(rng.integers(1, 20)), 128)
    batch = _batch(rng, block_size, mask)
    made = schedule(batch, spec, cache, tiling)
    small, large, merges = _lists(made)
    before, after = window(spec)
    met = [np.zeros((n * group, k), int) for n, k in zip(np.diff(batch.q_indptr), batch.kv_lens, strict=True)]
    parts = np.zeros(made.part_rows, int)
    for rows, items in ((SMALL_ROWS, small), (tiling.rows, large)):
        for item in items.astype(np.int64):
            request = int(np.flatnonzero((batch.q_indptr[:-1] == item[0]) & (np.diff(batch.q_indptr) > 0))[0])
            q_len, kv_len, begin, end = item[1], item[2], item[5], item[6]
            assert (q_len, kv_len) == (np.diff(batch.q_indptr)[request], batch.kv_lens[request])
            assert 0 <= begin <= end <= kv_len
            last = min(item[4] + rows, q_len * group)
            met[request][item[4] : last, begin:end] += 1
            position = _positions(batch, request)[np.arange(item[4], last) // group]
            keys = np.arange(max(begin, item[7]), min(end, item[8]))
            distance = keys[None, :] - position[:, None]
            assert ((distance >= -before) & (distance <= after)).all()
            if mask == "tree":
                assert (keys < kv_len - q_len).all()
                low, high = item[14:16]
                assert (int(high) << 32) | (int(low) & 0xFFFFFFFF) == batch.mask_indptr[request]
                assert (made.ints[item[11] : item[11] + q_len] == _positions(batch, request)).all()
            used = -(-kv_len // block_size)
            assert (made.ints[item[10] : item[10] + used] == batch.block_table[request, :used]).all()
            if item[9] >= 0:
                parts[item[9] : item[9] + rows] += 1
    assert (parts == 1).all()
    for request, count in enumerate(met):
        distance = np.arange(count.shape[1])[None, :] - np.repeat(_positions(batch, request), group)[:, None]
        seen = (distance >= -before) & (distance <= after)
        assert (count <= 1).all()
        assert (count[seen] == 1).all()
    split = {(item[0], item[4] + row) for rows, items in ((SMALL_ROWS, small), (tiling.rows, large))
             for item in items if item[9] >= 0 for row in range(min(rows, item[1] * group - item[4]))}  # fmt: skip
    assert {(merge[0], merge[1]) for merge in merges} == split
    assert len(merges) == len(split)


def test_keys_are_split_where_tiles_are_few_and_not_where_they_are_many() -> None:
    spec = AttentionSpec(8, 8, 64, 64, 1.0)
    one = AttentionBatch(np.array([0, 1], np.int32), np.array([8192], np.int32), kv_indptr=np.array([0, 8192]))
    made = schedule(one, spec, None, Tiling(64, 64, 33, 128))
    assert (made.small, made.merges) == (32, 1)
    size = np.arange(257, dtype=np.int32)
    many = AttentionBatch(size, np.full(256, 512, np.int32), kv_indptr=np.arange(257) * 512)
    assert schedule(many, spec, None, Tiling(64, 64, 33, 128)).merges == 0


def test_header_holds_what_kernels_read() -> None:
    spec = AttentionSpec(6, 2, 64, 64, 1.0, mask="full", window_left=9, want_lse=True)
    cache = CacheSpec(10, 16, 2, 64, 64, KVFormat("f32"), KVFormat("f32"))
    batch = AttentionBatch(np.array([0], np.int32), np.array([], np.int32), np.zeros((0, 1), np.int32))
    made = schedule(batch, spec, cache, Tiling(64, 64, 4, 128))
    assert made.ints.tolist() == [0, HEADER, 0, HEADER, 0, HEADER, 3, 9, 2**31 - 1, 16, 4, 0, 1, 0, 0, 0]
