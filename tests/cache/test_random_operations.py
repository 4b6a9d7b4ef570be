"""Random sequences of operations against a memory that says what each slot really holds.

The model writes into a slot the whole prefix that a token's keys and values depend on. So a live sequence that reads
anything but its own prefixes through its block table has been given a wrong block, an overwritten block or a block
whose copy came too late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from opsocket.cache import BlockManager, chained_hash
from opsocket.operators.errors import ContractError, ResourceError

PICK = st.integers(0, 15)
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=9)  # two tokens only, so that prompts often agree
HASHES = {
    "blake2b": chained_hash,
    "constant": lambda _parent, _tokens: b"",  # every block collides with every other
    "no chain": lambda _parent, tokens: tokens,  # equal blocks after different prefixes collide
}


@dataclass
class Sequence:
    tokens: list[int]
    salt: str
    computed: int = 0
    slots: int = 0
    resident: bool = True

    def content(self, position: int) -> tuple:
        return self.salt, tuple(self.tokens[: position + 1])


class Simulation:
    """Operations on a manager, what each must return, and what must hold after it. `number`s pick a sequence."""

    def start(self, num_blocks: int, block_size: int, sharing: bool, content_hash: str) -> None:
        self.manager = BlockManager(num_blocks, block_size, prefix_sharing=sharing, content_hash=HASHES[content_hash])
        self.block_size, self.num_blocks, self.sharing = block_size, num_blocks, sharing
        self.live: dict[int, Sequence] = {}
        self.next_id = 0
        self.prompts: list[tuple[str, list[int]]] = [("", [])]
        self.memory: dict[int, object] = {}
        self.copies: list[tuple[int, int]] = []  # ordered, and carried out only when something is written
        self.known: set[tuple] = set()  # prefixes that must be found: computed, and nothing evicted since
        self.evictions = 0

    # Helpers

    def pick(self, number: int, resident: bool | None = None) -> int | None:
        ids = [i for i, s in self.live.items() if resident is None or s.resident == resident]
        return ids[number % len(ids)] if ids else None

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def carried_out(self) -> dict[int, object]:
        memory, size = dict(self.memory), self.block_size
        for src, dst in self.copies:
            for offset in range(size):
                memory[dst * size + offset] = memory.get(src * size + offset)
        return memory

    def full_prefixes(self, sequence: Sequence, computed: int) -> list[tuple]:
        size = self.block_size
        return [sequence.content((i + 1) * size - 1) for i in range(computed // size)]

    def remember(self) -> None:
        if self.manager.stats().evictions != self.evictions:
            self.evictions = self.manager.stats().evictions
            self.known.clear()
        for sequence in self.live.values():
            self.known.update(self.full_prefixes(sequence, sequence.computed))

    def expect_shared(self, seq_id: int, cached: int) -> None:
        sequence = self.live[seq_id]
        findable = 0
        if self.sharing:
            shareable = self.full_prefixes(sequence, max(len(sequence.tokens) - 1, 0))
            while findable < len(shareable) and shareable[findable] in self.known:
                findable += 1
            assert cached % self.block_size == 0
            assert findable * self.block_size <= cached <= max(len(sequence.tokens) - 1, 0)
        else:
            assert cached == 0
        sequence.computed = sequence.slots = cached

    def view(self) -> tuple:
        tables = {i: self.manager.block_table(i) for i in self.live}
        return tables, self.manager.num_free, self.manager.num_cached, self.manager.stats()

    # Operations

    def admit(self, number: int, keep: int, more: list[int], other_salt: bool, run: bool) -> None:
        salt, prompt = self.prompts[number % len(self.prompts)]
        salt = {"": "b", "b": ""}[salt] if other_salt else salt
        tokens = prompt[:keep] + more
        self.prompts.append((salt, tokens))
        seq_id = self.new_id()
        self.live[seq_id] = Sequence(list(tokens), salt)
        self.expect_shared(seq_id, self.manager.admit(seq_id, tokens, salt=salt))
        if run:
            self.step(-1, ahead=0)

    def append(self, number: int, tokens: list[int]) -> None:
        if (seq_id := self.pick(number)) is not None:
            self.manager.append(seq_id, tokens)
            self.live[seq_id].tokens.extend(tokens)
            self.prompts.append((self.live[seq_id].salt, list(self.live[seq_id].tokens)))

    def grow(self, number: int, ahead: int) -> None:
        """To all known tokens and a few ahead, or a chunk of them."""
        if (seq_id := self.pick(number, resident=True)) is None:
            return
        sequence, before = self.live[seq_id], self.view()
        goal = max(len(sequence.tokens) + ahead, sequence.slots)
        table, available = before[0][seq_id], before[1] + before[2]
        added = -(-goal // self.block_size) - len(table)
        if not self.manager.can_grow(seq_id, goal):
            with pytest.raises(ResourceError) as caught:
                self.manager.grow(seq_id, goal)
            assert caught.value.have == available < caught.value.need <= added + 1
            assert self.view() == before
            return
        copies = self.manager.grow(seq_id, goal)
        assert added + len(copies) <= available
        assert not copies or goal > sequence.slots, "who writes nothing copies nothing"
        sequence.slots = goal
        self.copies += copies
        replaced = dict(copies)
        expected = [replaced.get(block, block) for block in table]
        assert list(self.manager.block_table(seq_id))[: len(table)] == expected, "entries change by copies only"

    def compute(self, number: int, chunk: int) -> None:
        """A step: all copies, then any nonsense into every slot not computed yet, then one sequence's chunk."""
        if (seq_id := self.pick(number, resident=True)) is None:
            return
        self.memory, self.copies = self.carried_out(), []
        for other_id, other in self.live.items():
            for slot in self.manager.slots(other_id, other.computed, other.slots).tolist():
                self.memory[slot] = f"draft of {other_id}"
        sequence = self.live[seq_id]
        stop = min(sequence.computed + chunk, sequence.slots, len(sequence.tokens))
        stop = max(stop, sequence.computed)
        slots = self.manager.slots(seq_id, sequence.computed, stop).tolist()
        for position, slot in zip(range(sequence.computed, stop), slots, strict=True):
            self.memory[slot] = sequence.content(position)
        self.manager.commit(seq_id, stop)
        sequence.computed = stop

    def step(self, number: int, ahead: int) -> None:
        """What an engine does most: room for all tokens, and compute them."""
        self.grow(number, ahead)
        self.compute(number, 30)

    def fork(self, number: int) -> None:
        if (parent_id := self.pick(number, resident=True)) is not None:
            parent, child_id = self.live[parent_id], self.new_id()
            self.manager.fork(parent_id, child_id)
            self.live[child_id] = Sequence(list(parent.tokens), parent.salt, parent.computed, parent.computed)

    def truncate(self, number: int, less: int) -> None:
        if (seq_id := self.pick(number)) is not None:
            sequence = self.live[seq_id]
            length = max(max(len(sequence.tokens), sequence.slots) - less, 0)
            self.remember()
            self.manager.truncate(seq_id, length)
            del sequence.tokens[length:]
            sequence.slots = min(sequence.slots, length)
            sequence.computed = min(sequence.computed, length)

    def free(self, number: int) -> None:
        if (seq_id := self.pick(number)) is not None:
            self.manager.free(seq_id)
            del self.live[seq_id]

    def preempt(self, number: int) -> None:
        if (seq_id := self.pick(number, resident=True)) is not None:
            self.manager.preempt(seq_id)
            sequence = self.live[seq_id]
            sequence.resident, sequence.slots, sequence.computed = False, 0, 0

    def resume(self, number: int) -> None:
        if (seq_id := self.pick(number, resident=False)) is not None:
            self.live[seq_id].resident = True
            self.expect_shared(seq_id, self.manager.resume(seq_id))

    def misuse(self, number: int) -> None:
        if (seq_id := self.pick(number)) is None:
            return
        sequence, before = self.live[seq_id], self.view()
        beyond = max(len(sequence.tokens), sequence.slots) + 1
        wrong = [
            lambda: self.manager.admit(seq_id, [1]),
            lambda: self.manager.grow(seq_id, sequence.slots - 1),
            lambda: self.manager.commit(seq_id, min(len(sequence.tokens), sequence.slots) + 1),
            lambda: self.manager.commit(seq_id, sequence.computed - 1),
            lambda: self.manager.truncate(seq_id, beyond),
            lambda: self.manager.slots(seq_id, 0, sequence.slots + 1),
            lambda: self.manager.fork(seq_id, seq_id),
            lambda: self.manager.free(self.next_id + 1),
            lambda: self.manager.resume(seq_id) if sequence.resident else self.manager.grow(seq_id, 1),
        ]
        for call in wrong:
            with pytest.raises(ContractError):
                call()
        assert self.view() == before

    # What must hold after each

    def books_agree(self) -> None:
        self.manager.check()
        self.remember()
        tables = {i: self.manager.block_table(i) for i in self.live}
        assert self.manager.num_used == len({block for table in tables.values() for block in table})
        assert self.manager.num_used + self.manager.num_free + self.manager.num_cached == self.num_blocks
        for seq_id, sequence in self.live.items():
            assert self.manager.num_tokens(seq_id) == len(sequence.tokens)
            assert self.manager.num_slots(seq_id) == sequence.slots
            assert self.manager.num_computed(seq_id) == sequence.computed
            size, table = self.block_size, tables[seq_id]
            expected = [table[t // size] * size + t % size for t in range(sequence.slots)]
            assert self.manager.slots(seq_id, 0, sequence.slots).tolist() == expected

    def each_reads_its_own(self) -> None:
        memory = self.carried_out()
        for seq_id, sequence in self.live.items():
            slots = self.manager.slots(seq_id, 0, sequence.computed).tolist()
            assert [memory.get(slot) for slot in slots] == [sequence.content(t) for t in range(sequence.computed)]

    def finish(self) -> None:
        """Nothing leaks: with everybody gone, one sequence gets every block, and gives every one back."""
        for seq_id in list(self.live):
            self.manager.free(seq_id)
        self.manager.check()
        assert self.manager.num_used == 0
        self.manager.admit("all", [])
        self.manager.grow("all", self.num_blocks * self.block_size)
        assert sorted(self.manager.block_table("all")) == list(range(self.num_blocks))
        self.manager.free("all")
        self.manager.check()
        assert (self.manager.num_used, self.manager.num_cached, self.manager.num_free) == (0, 0, self.num_blocks)


live = precondition(lambda self: self.live)
resident = precondition(lambda self: any(s.resident for s in self.live.values()))
preempted = precondition(lambda self: any(not s.resident for s in self.live.values()))


class Operations(Simulation, RuleBasedStateMachine):
    start = initialize(
        num_blocks=st.sampled_from([24, 12, 6, 1]),
        block_size=st.sampled_from([2, 3, 1]),
        sharing=st.sampled_from([True, True, True, False]),
        content_hash=st.sampled_from(sorted(HASHES)),
    )(Simulation.start)
    admit = rule(number=PICK, keep=st.integers(0, 24), more=TOKENS, other_salt=st.booleans(), run=st.booleans())(
        Simulation.admit
    )
    append = live(rule(number=PICK, tokens=TOKENS)(Simulation.append))
    grow = resident(rule(number=PICK, ahead=st.integers(-3, 5))(Simulation.grow))
    compute = resident(rule(number=PICK, chunk=st.integers(0, 30))(Simulation.compute))
    step = resident(rule(number=PICK, ahead=st.integers(0, 3))(Simulation.step))
    fork = resident(rule(number=PICK)(Simulation.fork))
    truncate = live(rule(number=PICK, less=st.integers(0, 6))(Simulation.truncate))
    free = live(rule(number=PICK)(Simulation.free))
    preempt = resident(rule(number=PICK)(Simulation.preempt))
    resume = preempted(rule(number=PICK)(Simulation.resume))
    misuse = live(rule(number=PICK)(Simulation.misuse))
    books_agree = invariant()(Simulation.books_agree)
    each_reads_its_own = invariant()(Simulation.each_reads_its_own)

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            self.finish()


TestRandomOperations = Operations.TestCase
TestRandomOperations.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)


@pytest.mark.parametrize("seed", range(16))
def test_long_walk(seed: int) -> None:
    """Hypothesis finds short stories and shrinks them; these are long ones, with full pools and deep histories."""
    random = np.random.default_rng(seed)
    simulation = Simulation()
    num_blocks, block_size = int(random.integers(8, 40)), int(random.integers(2, 5))
    simulation.start(num_blocks, block_size, sharing=True, content_hash=sorted(HASHES)[seed % len(HASHES)])
    walk = {
        "admit": (
            3,
            lambda n: simulation.admit(n, int(random.integers(0, 40)), tokens(), other_salt=n % 3 == 0, run=n % 2 == 0),
        ),
        "append": (3, lambda n: simulation.append(n, tokens())),
        "grow": (2, lambda n: simulation.grow(n, int(random.integers(-3, 6)))),
        "compute": (3, lambda n: simulation.compute(n, int(random.integers(0, 9)))),
        "step": (5, lambda n: simulation.step(n, int(random.integers(0, 4)))),
        "fork": (1.5, simulation.fork),
        "truncate": (1, lambda n: simulation.truncate(n, int(random.integers(0, 7)))),
        "free": (4.5, simulation.free),
        "preempt": (1.5, simulation.preempt),
        "resume": (2, simulation.resume),
        "misuse": (0.2, simulation.misuse),
    }

    def tokens() -> list[int]:
        return random.integers(0, 2, random.integers(0, 8)).tolist()

    weights = np.array([weight for weight, _ in walk.values()])
    operations = [operation for _, operation in walk.values()]
    for choice in random.choice(len(walk), size=1500, p=weights / weights.sum()):
        operations[choice](int(random.integers(0, 1000)))
        simulation.books_agree()
        simulation.each_reads_its_own()
    stats = simulation.manager.stats()
    assert min(stats.hits, stats.misses, stats.evictions, stats.copies) > 0, "the walk met nothing of interest"
    simulation.finish()
