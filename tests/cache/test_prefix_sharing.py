"""Who shares which blocks with whom, and who must never."""

from __future__ import annotations

import pytest

from opsocket.cache import BlockManager

CONSTANT = {"content_hash": lambda _parent, _tokens: b"same"}
UNCHAINED = {"content_hash": lambda _parent, tokens: tokens}


@pytest.mark.parametrize(("length", "cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (20, 12)])
def test_longest_prefix_of_full_blocks_is_shared_but_never_the_last_token(length, cached, prompt, run):
    manager = BlockManager(num_blocks=16, block_size=4)
    manager.admit("a", prompt(14))
    run(manager, "a")
    assert manager.admit("b", prompt(length)) == cached
    assert manager.block_table("b") == manager.block_table("a")[: cached // 4]
    assert manager.num_slots("b") == manager.num_computed("b") == cached
    assert manager.num_used == 4, "admission allocates nothing"
    manager.check()


def test_only_computed_blocks_are_shared(prompt):
    manager = BlockManager(num_blocks=16, block_size=4)
    manager.admit("a", prompt(12))
    manager.grow("a", 12)
    assert manager.admit("early", prompt(12)) == 0
    manager.commit("a", 7)
    assert manager.admit("later", prompt(12)) == 4
    manager.check()


def test_sampled_tokens_are_shared_too(prompt, run):
    """The next turn of a conversation starts with the last answer."""
    manager = BlockManager(num_blocks=16, block_size=4)
    manager.admit("turn 1", prompt(6))
    run(manager, "turn 1")
    for token in (7, 8, 9):
        manager.append("turn 1", [token])
        run(manager, "turn 1")
    manager.free("turn 1")
    assert manager.admit("turn 2", [*prompt(6), 7, 8, 9, 1, 2, 3]) == 8
    manager.check()


def test_a_block_is_shared_only_after_the_same_prefix(run):
    manager = BlockManager(num_blocks=16, block_size=2)
    manager.admit("a", [1, 2, 3, 4, 0])
    run(manager, "a")
    assert manager.admit("b", [9, 9, 3, 4, 0]) == 0
    assert manager.admit("c", [3, 4, 0]) == 0


def test_salts_keep_sequences_apart(prompt, run):
    manager = BlockManager(num_blocks=16, block_size=4, **CONSTANT)
    manager.admit("a", prompt(9), salt="tenant 1")
    run(manager, "a")
    assert manager.admit("b", prompt(9), salt="tenant 2") == 0
    assert manager.admit("c", prompt(9)) == 0
    assert manager.admit("d", prompt(9), salt="tenant 1") == 8
    run(manager, "b")
    assert manager.admit("e", prompt(9), salt="tenant 2") == 8
    assert manager.block_table("e") == manager.block_table("b")[:2]
    manager.fork("b", "f")
    manager.preempt("f")
    assert manager.resume("f") == 8
    assert manager.block_table("f") == manager.block_table("b")[:2], "a salt outlives fork and preemption"
    assert manager.admit("g", prompt(9), salt="\ud800") == 0, "a lone surrogate is a salt like any other"


@pytest.mark.parametrize("collision", [CONSTANT, UNCHAINED], ids=["constant", "unchained"])
def test_colliding_hashes_share_nothing_wrong_and_lose_nothing(collision, run):
    manager = BlockManager(num_blocks=32, block_size=2, **collision)
    prompts = {"a": [1, 2, 3, 4, 0], "b": [1, 2, 5, 6, 0], "c": [9, 9, 3, 4, 0], "d": [3, 4, 3, 4, 0]}
    expected = {"a": 0, "b": 2, "c": 0, "d": 0}
    for seq_id, tokens in prompts.items():
        assert manager.admit(seq_id, tokens) == expected[seq_id]
        run(manager, seq_id)
    tables = {seq_id: manager.block_table(seq_id) for seq_id in prompts}
    assert len({table[1] for table in tables.values()}) == 4
    for seq_id, tokens in prompts.items():
        assert manager.admit(seq_id + " again", tokens) == 4
        assert manager.block_table(seq_id + " again") == tables[seq_id][:2]


def test_sharing_can_be_off(prompt, run):
    manager = BlockManager(num_blocks=16, block_size=4, prefix_sharing=False)
    manager.admit("a", prompt(12))
    run(manager, "a")
    assert manager.admit("b", prompt(12)) == 0
    manager.free("a")
    assert (manager.num_cached, manager.num_free) == (0, 16)


def test_prompts_computed_side_by_side_keep_their_tables_but_one_copy_is_cached(prompt, run):
    manager = BlockManager(num_blocks=16, block_size=4)
    for seq_id in "abc":
        manager.admit(seq_id, prompt(8))
    for seq_id in "abc":
        run(manager, seq_id)
    tables = {seq_id: manager.block_table(seq_id) for seq_id in "abc"}
    assert len({block for table in tables.values() for block in table}) == 6
    manager.free("a")
    assert manager.num_cached == 0, "b and c still hold the prefix, a's copy of it is of no use"
    assert manager.admit("d", [*prompt(8), 1]) == 8
    assert manager.block_table("d") in (tables["b"], tables["c"])
    for seq_id in "bcd":
        manager.free(seq_id)
        manager.check()
    assert (manager.num_used, manager.num_cached, manager.num_free) == (0, 2, 14)


def test_a_prefix_computed_again_replaces_the_cached_copy(prompt, run):
    """It was not known at admission, and was computed, published and given back by another in the meantime."""
    manager = BlockManager(num_blocks=16, block_size=4)
    for seq_id in "ab":
        manager.admit(seq_id, prompt(8))
    run(manager, "a")
    manager.free("a")
    assert manager.num_cached == 2
    run(manager, "b")
    assert (manager.num_used, manager.num_cached, manager.num_free) == (2, 0, 14)
    assert manager.admit("c", [*prompt(8), 1]) == 8
    assert manager.block_table("c") == manager.block_table("b")


def test_hits_and_misses_count_tokens(prompt, run):
    manager = BlockManager(num_blocks=16, block_size=4)
    manager.admit("a", prompt(10))
    run(manager, "a")
    manager.admit("b", prompt(11))
    stats = manager.stats()
    assert (stats.hits, stats.misses) == (8, 10 + 3)
