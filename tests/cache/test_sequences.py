"""One sequence's way through the manager: slots, tables, chunks, drafts, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.cache import BlockManager, InconsistentCacheError
from opsocket.operators.errors import ContractError, OpsocketError, ResourceError


def test_chunked_prefill_allocates_as_it_goes(prompt):
    manager = BlockManager(num_blocks=8, block_size=4)
    assert manager.admit("a", prompt(10)) == 0
    assert manager.block_table("a") == ()
    assert manager.grow("a", 4) == []
    assert manager.num_used == 1
    manager.commit("a", 4)
    assert manager.grow("a", 10) == []
    assert len(manager.block_table("a")) == 3
    manager.commit("a", 10)
    assert (manager.num_tokens("a"), manager.num_slots("a"), manager.num_computed("a")) == (10, 10, 10)
    manager.check()


def test_slots_follow_the_block_table(prompt):
    manager = BlockManager(num_blocks=8, block_size=4)
    for seq_id in "ab":  # interleaved, so that no table is one ascending run
        manager.admit(seq_id, prompt(12, seed=ord(seq_id)))
    for length in (3, 6, 12):
        for seq_id in "ab":
            manager.grow(seq_id, length)
    table = manager.block_table("a")
    slots = manager.slots("a", 0, 12)
    assert slots.dtype == np.int64
    assert slots.tolist() == [table[t // 4] * 4 + t % 4 for t in range(12)]
    assert manager.slots("a", 3, 9).tolist() == slots[3:9].tolist()
    assert manager.slots("a", 5, 5).shape == (0,)
    assert manager.slots("a", 0, 0).shape == (0,)
    assert not set(slots.tolist()) & set(manager.slots("b", 0, 12).tolist())


def test_fresh_pool_gives_ascending_blocks():
    manager = BlockManager(num_blocks=5, block_size=4)
    manager.admit("a", [])
    manager.grow("a", 20)
    assert manager.block_table("a") == (0, 1, 2, 3, 4)
    manager.free("a")
    manager.admit("b", [])
    manager.grow("b", 20)
    assert manager.block_table("b") == (0, 1, 2, 3, 4), "and again after they came back"


def test_growth_is_all_or_nothing(prompt, state):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(40))
    manager.grow("a", 8)
    before = state(manager, "a")
    assert not manager.can_grow("a", 17)
    with pytest.raises(ResourceError) as caught:
        manager.grow("a", 17)
    assert (caught.value.what, caught.value.need, caught.value.have) == ("KV blocks", 3, 2)
    assert state(manager, "a") == before
    assert manager.can_grow("a", 16)
    assert manager.grow("a", 16) == []
    assert (manager.num_free, manager.num_used) == (0, 4)


def test_growing_to_the_same_length_changes_nothing(prompt, run, state):
    manager = BlockManager(num_blocks=4, block_size=4)
    manager.admit("a", prompt(6))
    run(manager, "a")
    manager.fork("a", "b")
    before = state(manager, "a", "b")
    assert manager.grow("a", 6) == []
    assert state(manager, "a", "b") == before


def test_rejected_drafts_give_their_blocks_back(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(6))
    run(manager, "a")
    kept = manager.block_table("a")
    manager.append("a", [1, 2, 3, 4, 5])
    manager.grow("a", 11)
    manager.truncate("a", 8)
    manager.commit("a", 8)
    assert manager.block_table("a") == kept
    assert manager.num_tokens("a") == manager.num_slots("a") == 8
    assert manager.num_free == 6
    manager.append("a", [9])
    assert manager.grow("a", 9) == []
    manager.check()


def test_slots_may_run_ahead_of_known_tokens(prompt, run):
    """Drafts whose tokens are told only once they are accepted."""
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(6))
    run(manager, "a")
    manager.grow("a", 10)
    with pytest.raises(ContractError, match="num_computed: wanted an integer from 6 to 6, got 7"):
        manager.commit("a", 7)
    manager.append("a", [1, 2])
    manager.commit("a", 8)
    manager.truncate("a", 8)
    assert len(manager.block_table("a")) == 2
    manager.check()


def test_truncated_tokens_are_forgotten(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(8))
    run(manager, "a")
    manager.truncate("a", 5)
    manager.append("a", [-1, -2, -3])
    run(manager, "a")
    assert manager.admit("same", [*prompt(5), -1, -2, -3, 0]) == 8
    assert manager.admit("old", [*prompt(8), 0]) == 8, "what was published before stays known too"
    assert manager.block_table("same")[1] != manager.block_table("old")[1]


@pytest.mark.parametrize("tokens", [(5, 6, 7), np.array([5, 6, 7], np.int32), iter([5, 6, 7]), [2**62, -1, 0]])
def test_tokens_may_come_as_any_integers(tokens):
    manager = BlockManager(num_blocks=2, block_size=2)
    manager.admit("a", tokens)
    assert manager.num_tokens("a") == 3


@pytest.mark.parametrize("tokens", [[1.5], ["a"], [2**63], 7, None, np.zeros((2, 2), np.int64)])
def test_other_tokens_are_refused(tokens):
    manager = BlockManager(num_blocks=2, block_size=2)
    with pytest.raises(ContractError, match="token_ids: wanted integers that fit i64"):
        manager.admit("a", tokens)
    manager.admit("a", [1])
    with pytest.raises(ContractError, match="token_ids"):
        manager.append("a", tokens)
    assert manager.num_tokens("a") == 1


REFUSED = {
    "unknown sequence": (lambda m: m.grow("nobody", 1), "seq_id: wanted an admitted sequence, got 'nobody'"),
    "freed twice": (lambda m: (m.free("a"), m.free("a")), "seq_id"),
    "admitted twice": (lambda m: m.admit("a", [1]), "seq_id: wanted an id that is not in use, got 'a'"),
    "fork onto a live one": (lambda m: m.fork("a", "p"), "child"),
    "salt of another type": (lambda m: m.admit("b", [1], salt=b"x"), "salt: wanted a str, got bytes"),
    "shrinking growth": (lambda m: m.grow("a", 6), "num_tokens: wanted an integer of at least 7, got 6"),
    "shrinking growth, asked": (lambda m: m.can_grow("a", 6), "num_tokens"),
    "negative growth": (lambda m: m.grow("a", -1), "num_tokens"),
    "growth by a float": (lambda m: m.grow("a", 8.0), "num_tokens: wanted an integer of at least 7, got 8.0"),
    "commit beyond the slots": (lambda m: m.commit("a", 8), "num_computed: wanted an integer from 5 to 7, got 8"),
    "commit backwards": (lambda m: m.commit("a", 4), "num_computed"),
    "truncate beyond the end": (lambda m: m.truncate("a", 10), "num_tokens: wanted an integer from 0 to 9, got 10"),
    "truncate below zero": (lambda m: m.truncate("a", -1), "num_tokens"),
    "slots beyond those held": (lambda m: m.slots("a", 0, 8), "stop: wanted an integer from 0 to 7, got 8"),
    "slots backwards": (lambda m: m.slots("a", 3, 2), "start: wanted an integer from 0 to 2, got 3"),
    "slots below zero": (lambda m: m.slots("a", -1, 2), "start"),
    "resume a resident": (lambda m: m.resume("a"), "seq_id: wanted a preempted sequence"),
    "preempt twice": (lambda m: m.preempt("p"), "seq_id: wanted a resident sequence, got 'p', which is preempted"),
    "grow a preempted": (lambda m: m.grow("p", 1), "seq_id: wanted a resident sequence"),
    "fork a preempted": (lambda m: m.fork("p", "q"), "seq_id: wanted a resident sequence"),
    "commit a preempted": (lambda m: m.commit("p", 1), "num_computed: wanted an integer from 0 to 0, got 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_misuse_names_the_argument_and_changes_nothing(what, prompt, state):
    call, message = REFUSED[what]
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(9))
    manager.grow("a", 7)
    manager.commit("a", 5)
    manager.admit("p", prompt(9, seed=1))
    manager.preempt("p")
    before = state(manager, "a", "p")
    with pytest.raises(ContractError) as caught:
        call(manager)
    assert str(caught.value).startswith(message)
    if what != "freed twice":
        assert state(manager, "a", "p") == before


@pytest.mark.parametrize(("sizes", "argument"), [((0, 4), "num_blocks"), ((4, 0), "block_size"), ((2**31, 1), "num_")])
def test_sizes_are_checked(sizes, argument):
    with pytest.raises(ContractError, match=argument):
        BlockManager(*sizes)


def test_check_finds_a_lost_reference(prompt, run):
    manager = BlockManager(num_blocks=8, block_size=4)
    manager.admit("a", prompt(9))
    run(manager, "a")
    manager._pool.share(manager.block_table("a")[1])
    with pytest.raises(InconsistentCacheError, match="references") as caught:
        manager.check()
    assert isinstance(caught.value, OpsocketError)
    assert isinstance(caught.value, AssertionError)


def test_tables_of_several_sequences_and_single_slots():
    manager = BlockManager(8, 4)
    for seq_id, length in (("a", 9), ("b", 3), ("c", 0)):
        manager.admit(seq_id, range(length))
        manager.grow(seq_id, length)
    tables = manager.block_tables(["b", "a", "c"])
    assert tables.dtype == np.int32
    assert tables.tolist() == [[*manager.block_table("b"), 0, 0], list(manager.block_table("a")), [0, 0, 0]]
    assert [manager.slot("a", i) for i in range(9)] == manager.slots("a", 0, 9).tolist()
    tables[:] = 99
    assert 99 not in manager.block_table("a"), "a copy"
    for position in (-1, 9):
        with pytest.raises(ContractError):
            manager.slot("a", position)
    assert manager.block_tables([]).shape == (0, 0)
