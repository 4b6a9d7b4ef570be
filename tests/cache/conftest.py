from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from opsocket.cache import BlockManager


@pytest.fixture
def run() -> Callable[..., list[tuple[int, int]]]:
    """Grow a sequence to hold all its tokens and commit them; returns the copies ordered on the way."""

    def run(manager: BlockManager, seq_id: object) -> list[tuple[int, int]]:
        length = manager.num_tokens(seq_id)
        copies = manager.grow(seq_id, length)
        manager.commit(seq_id, length)
        manager.check()
        return copies

    return run


@pytest.fixture
def state() -> Callable[..., object]:
    """All that a caller can see of a manager, for comparing before and after."""

    def state(manager: BlockManager, *seq_ids: object) -> object:
        manager.check()
        views = {
            seq_id: (
                manager.block_table(seq_id),
                manager.num_tokens(seq_id),
                manager.num_slots(seq_id),
                manager.num_computed(seq_id),
                tuple(manager.slots(seq_id, 0, manager.num_slots(seq_id))),
            )
            for seq_id in seq_ids
        }
        return views, manager.num_free, manager.num_cached, manager.num_used, manager.stats()

    return state


@pytest.fixture
def lines() -> Callable[[Callable[[], object]], int]:
    """Count the lines of opsocket's Python that a call executes: a measure of cost that no other process disturbs."""

    def lines(call: Callable[[], object]) -> int:
        count = 0

        def trace(frame, event, _argument):
            nonlocal count
            if "opsocket" not in frame.f_code.co_filename:
                return None
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call()
        finally:
            sys.settrace(before)
        return count

    return lines


@pytest.fixture
def prompt() -> Callable[..., list[int]]:
    """`length` random tokens; equal seeds share a prefix."""

    def prompt(length: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(0, 32000, 4096)[:length].tolist()

    return prompt
