"""Forks share blocks until somebody writes."""

from __future__ import annotations

import pytest

from opsocket.cache import BlockCopy, BlockManager
from opsocket.operators.errors import ResourceError


@pytest.fixture
def forked(prompt, run):
    """Parent and child over 10 computed tokens in blocks of 4: two full blocks, and one half full."""
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("parent", prompt(10))
    run(manager, "parent")
    manager.fork("parent", "child")
    return manager


def test_fork_shares_all_and_allocates_nothing(forked):
    assert forked.block_table("child") == forked.block_table("parent")
    assert (forked.num_used, forked.num_tokens("child"), forked.num_computed("child")) == (3, 10, 10)
    forked.check()


@pytest.mark.parametrize(("writer", "other"), [("child", "parent"), ("parent", "child")])
def test_the_first_writer_copies_and_the_second_writes_in_place(forked, writer, other):
    before = forked.block_table(other)
    forked.append(writer, [1])
    (copy,) = forked.grow(writer, 11)
    assert copy == BlockCopy(src=before[2], dst=forked.block_table(writer)[2])
    assert copy.dst not in before
    assert forked.block_table(writer)[:2] == before[:2]
    assert forked.block_table(other) == before
    forked.append(other, [2])
    assert forked.grow(other, 11) == []
    assert forked.block_table(other) == before
    assert forked.stats().copies == 1
    forked.check()


def test_n_sequences_over_one_block_make_n_minus_1_copies(forked):
    forked.fork("parent", "second")
    forked.fork("child", "third")
    copies = [copy for seq_id in ("child", "third", "parent", "second") for copy in forked.grow(seq_id, 11)]
    assert len(copies) == 3
    assert len({copy.src for copy in copies}) == 1
    assert len({forked.block_table(seq_id)[2] for seq_id in ("child", "third", "parent", "second")}) == 4
    forked.check()


def test_a_full_last_block_is_never_copied(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("parent", prompt(8))
    run(manager, "parent")
    manager.fork("parent", "child")
    assert manager.grow("child", 9) == []
    assert manager.grow("parent", 9) == []
    assert manager.num_used == 4


def test_a_survivor_writes_in_place(forked):
    table = forked.block_table("child")
    forked.free("parent")
    assert forked.grow("child", 11) == []
    assert forked.block_table("child") == table
    forked.check()


def test_fork_works_without_prefix_sharing(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4, prefix_sharing=False)
    manager.admit("parent", prompt(10))
    run(manager, "parent")
    manager.fork("parent", "child")
    assert manager.num_used == 3
    assert len(manager.grow("child", 11)) == 1
    assert manager.num_used == 4
    manager.check()


def test_slots_held_but_not_computed_stay_the_parents(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("parent", prompt(6))
    run(manager, "parent")
    manager.append("parent", [1, 2, 3, 4])
    manager.grow("parent", 10)
    mine = manager.slots("parent", 6, 10).tolist()
    manager.fork("parent", "child")
    assert (manager.num_tokens("child"), manager.num_slots("child")) == (10, 6)
    assert manager.block_table("child") == manager.block_table("parent")[:2]
    manager.commit("parent", 10)  # written where it was told before the fork
    assert manager.slots("parent", 6, 10).tolist() == mine
    assert len(manager.grow("child", 10)) == 1
    assert not set(manager.slots("child", 6, 10).tolist()) & set(mine)
    manager.check()


def test_a_copy_counts_as_a_block_needed(forked, state):
    forked.admit("filler", [])
    forked.grow("filler", 5 * 4)
    assert forked.num_free == 0
    before = state(forked, "parent", "child")
    assert not forked.can_grow("child", 11)
    with pytest.raises(ResourceError, match="not enough KV blocks: need 1, have 0"):
        forked.grow("child", 11)
    with pytest.raises(ResourceError, match="not enough KV blocks: need 2, have 0"):
        forked.grow("child", 13)
    assert state(forked, "parent", "child") == before
    forked.free("parent")
    assert forked.grow("child", 11) == [], "alone with the block, it needs no copy"


def test_a_published_block_is_copied_even_by_its_only_holder(prompt, run):
    """Backtracking into a computed block must not change what others may still find there."""
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(8))
    run(manager, "a")
    published = manager.block_table("a")[1]
    manager.truncate("a", 6)
    manager.append("a", [-1, -2])
    copies = run(manager, "a")
    assert [copy.src for copy in copies] == [published]
    assert manager.num_cached == 1
    assert manager.admit("b", [*prompt(8), 0]) == 8
    assert manager.block_table("b")[1] == published


def test_the_source_of_a_copy_is_not_handed_out_by_the_same_growth(prompt, run):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(8))
    run(manager, "a")
    manager.truncate("a", 6)
    (copy,) = manager.grow("a", 12)
    assert copy.src not in manager.block_table("a")
    assert not manager.can_grow("a", 20)
    manager.check()
