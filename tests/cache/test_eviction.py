"""Cached prefixes: how long they stay, in which order they go, and preemption, which lives from them."""

from __future__ import annotations

import pytest

from opsocket.cache import BlockManager
from opsocket.operators.errors import ResourceError


def take(manager: BlockManager, num_blocks: int) -> object:
    """Hold `num_blocks` blocks that no prefix can be found in."""
    seq_id = object()
    manager.admit(seq_id, [])
    manager.grow(seq_id, num_blocks * manager.block_size)
    manager.check()
    return seq_id


def cached_tokens(manager: BlockManager, tokens: list[int]) -> int:
    """How much of `tokens` is found now; makes that much the most recently used."""
    cached = manager.admit("probe", [*tokens, 0])
    manager.free("probe")
    return cached


def test_freed_prefixes_stay_until_their_room_is_needed(prompt, run):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(10))
    run(manager, "a")
    manager.free("a")
    assert (manager.num_used, manager.num_cached, manager.num_free) == (0, 2, 2), "the partly filled block is free"
    take(manager, 2)
    assert manager.stats().evictions == 0, "free blocks go first"
    assert cached_tokens(manager, prompt(8)) == 8


def test_leaves_go_before_their_parents(prompt, run):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(16))
    run(manager, "a")
    manager.free("a")
    for left in (12, 8, 4, 0):
        take(manager, 1)
        assert cached_tokens(manager, prompt(16)) == left
    assert manager.stats().evictions == 4


def test_the_least_recently_used_goes_first(prompt, run):
    manager = BlockManager(num_blocks=6, block_size=4)
    prompts = {seq_id: prompt(8, seed=ord(seq_id)) for seq_id in "abc"}
    for seq_id, tokens in prompts.items():
        manager.admit(seq_id, tokens)
        run(manager, seq_id)
        manager.free(seq_id)
    assert cached_tokens(manager, prompts["a"]) == 8  # now b is the oldest
    take(manager, 2)
    assert manager.admit("a", [*prompts["a"], 0]) == 8
    assert manager.admit("c", [*prompts["c"], 0]) == 8
    assert manager.admit("b", [*prompts["b"], 0]) == 0


def test_a_shared_trunk_outlives_its_branches(prompt, run):
    manager = BlockManager(num_blocks=6, block_size=4)
    trunk = prompt(8)
    for branch in range(2):
        manager.admit(branch, [*trunk, *prompt(8, seed=branch + 1)])
        run(manager, branch)
    manager.free(0)
    manager.free(1)
    assert (manager.num_used, manager.num_cached) == (0, 6)
    take(manager, 4)
    assert cached_tokens(manager, trunk) == 8


def test_blocks_in_use_are_never_evicted(prompt, run):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(12))
    run(manager, "a")
    manager.admit("b", [*prompt(8), 0])
    manager.free("a")
    assert (manager.num_used, manager.num_cached, manager.num_free) == (2, 1, 1)
    take(manager, 2)
    with pytest.raises(ResourceError):
        take(manager, 1)
    assert manager.block_table("b") == (0, 1)


def test_found_prefixes_are_not_available_to_their_finder(prompt, run):
    """A cached block that a sequence has just shared can't be evicted to make room for that sequence."""
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(16))
    run(manager, "a")
    manager.free("a")
    assert manager.admit("b", [*prompt(12), *prompt(8, seed=1)]) == 12
    assert not manager.can_grow("b", 20)
    with pytest.raises(ResourceError, match="need 2, have 1"):
        manager.grow("b", 20)
    assert manager.can_grow("b", 16)


def test_preemption_gives_all_blocks_back_and_resume_finds_them(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(9))
    run(manager, "a")
    manager.append("a", [7])
    manager.preempt("a")
    assert (manager.num_used, manager.num_cached, manager.num_free) == (0, 2, 6)
    assert (manager.block_table("a"), manager.num_tokens("a"), manager.num_computed("a")) == ((), 10, 0)
    manager.append("a", [8])  # the step that was running when it was preempted
    assert manager.resume("a") == 8
    run(manager, "a")
    assert manager.num_computed("a") == 11


def test_resume_recomputes_what_was_evicted(prompt, run):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(16))
    run(manager, "a")
    manager.preempt("a")
    other = take(manager, 3)
    assert manager.resume("a") == 4
    assert not manager.can_grow("a", 16)
    manager.free(other)
    run(manager, "a")
    assert manager.num_computed("a") == 16


def test_a_preempted_sequence_can_be_truncated_and_freed(prompt, run):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(12))
    run(manager, "a")
    manager.preempt("a")
    manager.truncate("a", 9)
    assert manager.resume("a") == 8
    manager.preempt("a")
    manager.free("a")
    manager.check()
    assert manager.num_used == 0
    assert manager.admit("a", [1]) == 0, "the id is free again"


def test_preemption_lets_everybody_finish(prompt, run):
    """Four sequences that fit only one and a half at a time: a scheduler that preempts the youngest completes all."""
    manager = BlockManager(num_blocks=6, block_size=4)
    waiting = list(range(4))
    for seq_id in waiting:
        manager.admit(seq_id, prompt(6, seed=seq_id))
    running, preempted, finished = waiting, [], []
    for _ in range(400):
        for seq_id in list(running):
            if seq_id not in running:
                continue
            while not manager.can_grow(seq_id, manager.num_tokens(seq_id)):
                youngest = running.pop()
                manager.preempt(youngest)
                preempted.insert(0, youngest)
                if youngest == seq_id:
                    break
            else:
                run(manager, seq_id)
                manager.append(seq_id, [manager.num_tokens(seq_id)])
                if manager.num_tokens(seq_id) == 20:
                    manager.free(seq_id)
                    running.remove(seq_id)
                    finished.append(seq_id)
        if preempted and manager.num_free + manager.num_cached >= 3:
            running.append(preempted.pop(0))
            manager.resume(running[-1])
    assert finished == [0, 1, 2, 3]
    assert manager.num_used == 0
    assert manager.stats().hits > 0, "resuming found what preemption had left"


def test_peak_use_is_remembered(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(12))
    run(manager, "a")
    manager.free("a")
    manager.free(take(manager, 2))
    assert (manager.stats().peak_used, manager.num_used) == (3, 0)
    take(manager, 1)
    manager.admit("b", [*prompt(12), 0])  # takes cached blocks into use again
    assert (manager.stats().peak_used, manager.num_used) == (4, 4)
