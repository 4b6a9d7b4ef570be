"""What an operation costs depends on the blocks it touches, not on the pool, the history or the other sequences."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from opsocket.cache import BlockManager, chained_hash

BLOCK_SIZE = 4


@pytest.fixture
def crowded(prompt):
    """A manager with `num_blocks` blocks, most of them cached or in use, and a sequence "a" of `length` tokens."""

    def crowded(num_blocks: int, length: int) -> BlockManager:
        manager = BlockManager(num_blocks, BLOCK_SIZE)
        shares = {"old": num_blocks // 2 * BLOCK_SIZE, "other": num_blocks // 4 * BLOCK_SIZE, "a": length}
        for number, (seq_id, tokens) in enumerate(shares.items()):
            manager.admit(seq_id, range(number, number + tokens))
            manager.grow(seq_id, tokens)
            manager.commit(seq_id, tokens)
        manager.free("old")
        return manager

    return crowded


OPERATIONS = {
    "decode step": lambda m, n: (m.grow("a", n + 1), m.append("a", [7]), m.commit("a", n + 1)),
    "grow by 5 blocks": lambda m, n: m.grow("a", n + 5 * BLOCK_SIZE),
    "slots of one token": lambda m, n: m.slots("a", n - 1, n),
    "can grow": lambda m, n: m.can_grow("a", n + 1),
    "truncate by one block": lambda m, n: m.truncate("a", n - BLOCK_SIZE),
    "admit a short one": lambda m, _: m.admit("new", range(-10, 0)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_cost_does_not_grow_with_pool_and_length(name, crowded, lines):
    def cost(num_blocks: int, length: int) -> int:
        manager = crowded(num_blocks, length)
        return lines(lambda: OPERATIONS[name](manager, length))

    assert cost(200, 40) == cost(10_000, 2000) > 0


def test_evicting_growth_costs_by_the_block(crowded, lines):
    def cost(pool: int, blocks: int) -> int:
        manager = crowded(pool, 8)
        manager.admit("filler", [])
        manager.grow("filler", manager.num_free * BLOCK_SIZE)
        return lines(lambda: manager.grow("a", 8 + blocks * BLOCK_SIZE))

    assert cost(1000, 8) == cost(10000, 8)
    assert cost(1000, 64) - cost(1000, 32) == 2 * (cost(1000, 32) - cost(1000, 16))


def test_each_block_is_hashed_once_on_admission_and_once_on_commit():
    calls = []

    def counted(parent: bytes, tokens: bytes) -> bytes:
        calls.append(len(tokens))
        return chained_hash(parent, tokens)

    manager = BlockManager(64, BLOCK_SIZE, content_hash=counted)
    manager.admit("a", range(101))
    assert sum(calls) == BLOCK_SIZE * 8, "the first unknown block ends the search"
    calls.clear()
    manager.grow("a", 101)
    assert calls == []
    for stop in (50, 99, 101):
        manager.commit("a", stop)
    assert sum(calls) == 25 * BLOCK_SIZE * 8
    calls.clear()
    assert manager.admit("b", range(101)) == 100
    assert sum(calls) == 25 * BLOCK_SIZE * 8
    calls.clear()
    manager.grow("b", 101)
    manager.commit("b", 101)
    assert calls == [], "blocks that were found need no second hash"


def test_hashes_are_chained():
    """Else all first blocks of answers, greetings and the like would meet in one bucket."""
    known = {}

    def recorded(parent: bytes, tokens: bytes) -> bytes:
        known[parent, tokens] = chained_hash(parent, tokens)
        return known[parent, tokens]

    manager = BlockManager(64, BLOCK_SIZE, content_hash=recorded)
    manager.admit("a", [7] * 40)
    manager.grow("a", 40)
    manager.commit("a", 40)
    assert len(set(known.values())) == 1 + 10, "the salt's, and one for each block though their tokens are equal"


def test_memory_does_not_grow_with_history():
    def churn(first: int, count: int) -> None:
        for number in range(first, first + count):
            manager.admit("a", [number] * 16)
            manager.grow("a", 16)
            manager.commit("a", 16)
            manager.free("a")

    manager = BlockManager(8, BLOCK_SIZE)
    churn(0, 100)
    tracemalloc.start()
    churn(100, 1000)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    manager.check()
    assert size < 20_000, "4000 evicted blocks have left nothing behind"


def test_decoding_late_in_a_long_sequence_is_fast():
    """Lines don't see what C does; copying a million tokens each step would show here."""
    manager = BlockManager(70_000, 16)
    manager.admit("a", range(1_000_000))
    manager.grow("a", 1_000_000)
    manager.commit("a", 1_000_000)
    started = time.process_time()
    for length in range(1_000_001, 1_001_001):
        manager.append("a", [1])
        manager.grow("a", length)
        manager.slots("a", length - 1, length)
        manager.slots("a", 0, 1)
        manager.commit("a", length)
    # 0.01 s on the machine where one copy of all tokens per step takes 0.6 s, and one of all blocks 3 s.
    assert time.process_time() - started < 0.3
