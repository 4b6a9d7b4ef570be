"""Writes by way of a ring of host memory, to a device whose copies run late: each has to find what was written."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opsocket_triton.staging import StagingRing, Transfers

KIB = 1024


class LateTransfers(Transfers):
    """Copies read host memory when they run: in order, so many at a time, or when somebody waits for them."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, torch.Tensor, torch.Tensor]] = deque()
        self.allocated: list[int] = []
        self.enqueued = self.waits = 0
        self.recording = False
        self.recorded: list[tuple[torch.Tensor, torch.Tensor]] = []

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.allocated.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)

    def enqueue(self, target: torch.Tensor, source: torch.Tensor) -> int:
        if self.recording:
            self.recorded.append((target, source))
            return -1
        self.waiting.append((self.enqueued, target, source))
        self.enqueued += 1
        return self.enqueued - 1

    def has_run(self, event: Any) -> bool:
        return not self.waiting or event < self.waiting[0][0]

    def wait(self, event: Any) -> None:
        self.waits += 1
        while not self.has_run(event):
            self.run(1)

    def is_recording(self) -> bool:
        return self.recording

    def run(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            _, target, source = self.waiting.popleft()
            target.copy_(source)


def write(ring: StagingRing, number: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.arange(count, dtype=torch.int32) + 1000 * number
    target = torch.full((count,), -1, dtype=torch.int32)
    ring.write(target, source)
    want = source.clone()
    source.fill_(-2)  # the caller's again as soon as the write returns
    return target, want


def check(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for target, want in pairs:
        assert torch.equal(target, want)


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 3)), min_size=1, max_size=60))
def test_every_copy_finds_what_was_written(steps):
    device = LateTransfers()
    ring = StagingRing(device, first=1 * KIB, most=4 * KIB)
    pairs = []
    for number, (count, run) in enumerate(steps):
        pairs.append(write(ring, number, count))
        device.run(run)
    device.run(len(steps))
    check(pairs)
    assert max(device.allocated) <= 4 * KIB


def test_a_ring_that_is_kept_up_with_neither_grows_nor_waits():
    device = LateTransfers()
    ring = StagingRing(device, first=4 * KIB, most=64 * KIB)
    pairs = []
    for number in range(500):
        pairs.append(write(ring, number, 200))
        device.run(len(device.waiting) - 2)  # two copies are always still to run
    device.run(2)
    check(pairs)
    assert device.allocated == [4 * KIB]
    assert device.waits == 0


def test_many_writes_that_nobody_runs_grow_it_and_do_not_wait():
    device = LateTransfers()
    ring = StagingRing(device, first=1 * KIB, most=1 << 20)
    pairs = [write(ring, number, 200) for number in range(300)]
    assert device.waits == 0
    assert ring.nbytes <= 1 << 20
    assert len(device.waiting) == 300
    device.run(300)
    check(pairs)
    again = len(device.allocated)
    write(ring, 0, 200)
    assert len(device.allocated) == again


def test_at_the_limit_the_host_waits_for_the_oldest_alone():
    device = LateTransfers()
    ring = StagingRing(device, first=4 * KIB, most=4 * KIB)
    pairs = [write(ring, number, 256) for number in range(5)]
    assert device.waits == 1
    assert len(device.waiting) == 4
    device.run(4)
    check(pairs)


def test_more_than_the_limit_is_copied_from_where_it_is():
    device = LateTransfers()
    ring = StagingRing(device, first=1 * KIB, most=4 * KIB)
    target, want = write(ring, 1, 2000)
    assert torch.equal(target, want)
    assert device.enqueued == 0


def test_nothing_is_copied_of_nothing():
    device = LateTransfers()
    ring = StagingRing(device)
    ring.write(torch.empty(0, 5), torch.empty(0, 5))
    assert device.enqueued == 0


def test_a_replay_finds_what_was_recorded():
    device = LateTransfers()
    ring = StagingRing(device, first=1 * KIB, most=1 * KIB)
    device.recording = True
    recorded = [write(ring, number, 100) for number in range(3)]
    device.recording = False
    for number in range(20):
        write(ring, 50 + number, 200)
        device.run(1)
    for target, source in device.recorded:
        target.copy_(source)
    check(recorded)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float8_e4m3fn, torch.uint8], ids=str)
def test_shapes_and_types_are_kept(dtype):
    device = LateTransfers()
    ring = StagingRing(device)
    source = torch.arange(21).reshape(3, 7).to(dtype)
    target = torch.zeros(7, 3).to(dtype).T
    ring.write(target, source)
    device.run(1)
    assert torch.equal(target.float(), source.float())
