"""The scheduler against its own promises, with made-up tokens in place of a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.cache import BlockManager
from opsocket_engine.batch import assemble
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.scheduler import Scheduler, Step
from opsocket_engine.sequence import Sequence

BLOCK = 4


def make_scheduler(num_blocks: int, max_batch: int = 4, max_step_tokens: int = 8) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, BLOCK), max_batch, max_step_tokens)


def make_sequence(number: int, prompt: list[int], n: int = 1) -> Sequence:
    return Sequence(number, SamplingParams(n=n), 0, list(prompt), len(prompt), unparted=n)


def finish_step(scheduler: Scheduler, step: Step) -> list[Sequence]:
    """Complete a step as an engine does; the token chosen tells the sequence and its position."""
    grown = []
    for chunk in step.chunks:
        for sequence in scheduler.complete(chunk):
            scheduler.append(sequence, 1000 * sequence.request + 100 * sequence.sample + len(sequence.tokens))
            grown.append(sequence)
    return grown


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=18),  # few different tokens: prefixes are shared often
        st.integers(1, 10),  # tokens to generate
        st.integers(1, 3),  # samples
        st.integers(0, 6),  # the step in which it arrives
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(requests, st.integers(7, 14), st.integers(3, 12))
def test_every_request_gets_its_tokens_whatever_the_pressure(requests, num_blocks, max_step_tokens):
    scheduler = make_scheduler(num_blocks, max_batch=3, max_step_tokens=max_step_tokens)
    arrivals = sorted(range(len(requests)), key=lambda i: requests[i][3])
    done: dict[tuple[int, int], Sequence] = {}
    first_scheduled: list[int] = []
    for number in range(2000):
        for i in arrivals:
            if requests[i][3] == number:
                scheduler.add(make_sequence(arrivals.index(i), requests[i][0], requests[i][2]))
        step = scheduler.schedule()
        if not step.chunks:
            assert not scheduler.running
            assert not scheduler.waiting
            if number > 6:
                break
            continue
        assert sum(c.stop - c.start for c in step.chunks) <= max_step_tokens
        assert len({c.sequence.key for c in step.chunks}) == len(step.chunks)
        assert sum(c.sequence.unparted for c in step.chunks) <= 3
        assert sum(c.num_sampled for c in step.chunks) <= 3
        batch = assemble(step, scheduler.blocks)
        assert len(set(batch.cache_write.slots.tolist())) == len(batch.token_ids)
        for chunk in step.chunks:
            assert chunk.start == scheduler.blocks.num_computed(chunk.sequence.key) < chunk.stop
            if chunk.sequence.request not in first_scheduled:
                first_scheduled.append(chunk.sequence.request)
        for sequence in finish_step(scheduler, step):
            if sequence.num_generated == requests[arrivals[sequence.request]][1]:
                scheduler.remove(sequence)
                done[sequence.key] = sequence
        scheduler.blocks.check()
    assert first_scheduled == sorted(first_scheduled), "first come, first served"
    for position, i in enumerate(arrivals):
        prompt, count, n, _ = requests[i]
        for sample in range(n):
            want = [1000 * position + 100 * sample + len(prompt) + t for t in range(count)]
            assert done[position, sample].tokens == prompt + want
    assert scheduler.blocks.num_used == 0


def test_decodes_come_before_prompts_and_prompts_in_chunks():
    scheduler = make_scheduler(num_blocks=20)
    scheduler.add(make_sequence(0, [1, 2, 3]))
    finish_step(scheduler, scheduler.schedule())
    scheduler.add(make_sequence(1, list(range(20))))
    lengths = []
    for _ in range(3):
        step = scheduler.schedule()
        lengths.append([(c.sequence.request, c.stop - c.start) for c in step.chunks])
        finish_step(scheduler, step)
    assert lengths == [[(0, 1), (1, 7)], [(0, 1), (1, 7)], [(0, 1), (1, 6)]]


def test_only_the_end_of_what_is_known_is_sampled():
    scheduler = make_scheduler(num_blocks=20)
    scheduler.add(make_sequence(0, list(range(12))))
    first, second = scheduler.schedule(), None
    assert [c.num_sampled for c in first.chunks] == [0]
    assert finish_step(scheduler, first) == []
    second = scheduler.schedule()
    assert [c.num_sampled for c in second.chunks] == [1]
    assert [c.is_decode for c in second.chunks] == [False]
    assert assemble(second, scheduler.blocks).rows.tolist() == [3]


def test_admission_waits_for_blocks_and_keeps_order():
    scheduler = make_scheduler(num_blocks=6, max_step_tokens=64)
    scheduler.add(make_sequence(0, list(range(16))))
    scheduler.add(make_sequence(1, list(range(100, 116))))
    scheduler.add(make_sequence(2, [7]))  # would fit, but comes after 1
    step = scheduler.schedule()
    assert [c.sequence.request for c in step.chunks] == [0]
    finish_step(scheduler, step)
    scheduler.remove(scheduler.running[0])
    assert [c.sequence.request for c in scheduler.schedule().chunks] == [1, 2]


def test_the_latest_arrival_is_preempted_and_comes_back_with_what_is_cached():
    scheduler = make_scheduler(num_blocks=5, max_step_tokens=64)
    for number in (0, 1):
        scheduler.add(make_sequence(number, [number * 50 + t for t in range(8)]))
    sequences = {}
    for _ in range(6):
        step = scheduler.schedule()
        for sequence in finish_step(scheduler, step):
            sequences[sequence.request] = sequence
    assert scheduler.num_preemptions == 1
    assert [s.request for s in scheduler.waiting] == [1]
    assert sequences[0].num_generated > sequences[1].num_generated
    shared = scheduler.num_shared_tokens
    scheduler.remove(sequences[0])
    step = scheduler.schedule()
    assert [(c.sequence.request, c.start) for c in step.chunks] == [(1, scheduler.num_shared_tokens - shared)]
    assert step.chunks[0].start > 0, "its first blocks were still cached"


def test_equal_prefixes_share_blocks():
    scheduler = make_scheduler(num_blocks=20, max_step_tokens=64)
    prompt = list(range(13))
    scheduler.add(make_sequence(0, prompt))
    finish_step(scheduler, scheduler.schedule())
    scheduler.add(make_sequence(1, [*prompt, 77]))
    chunks = {c.sequence.request: c for c in scheduler.schedule().chunks}
    assert chunks[1].start == 12
    assert scheduler.num_shared_tokens == 12
    assert scheduler.blocks.block_table((0, 0))[:3] == scheduler.blocks.block_table((1, 0))[:3]


def test_samples_of_one_prompt_share_it_until_they_write():
    scheduler = make_scheduler(num_blocks=20, max_step_tokens=64)
    scheduler.add(make_sequence(0, list(range(6)), n=3))
    step = scheduler.schedule()
    assert assemble(step, scheduler.blocks).rows.tolist() == [5, 5, 5]
    assert [s.sample for s in finish_step(scheduler, step)] == [0, 1, 2]
    assert scheduler.blocks.num_used == 2
    step = scheduler.schedule()
    assert len(step.chunks) == 3
    assert len(step.copies) == 2, "the last to write keeps the block itself"
    assert assemble(step, scheduler.blocks).copies.pairs.tolist() == [list(copy) for copy in step.copies]
    assert scheduler.blocks.num_used == 4
    scheduler.blocks.check()


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_remove_gives_everything_back(state):
    scheduler = make_scheduler(num_blocks=20)
    sequence = make_sequence(0, list(range(20)))
    scheduler.add(sequence)
    if state == "running":
        scheduler.schedule()
    scheduler.remove(sequence)
    scheduler.blocks.check()
    assert scheduler.blocks.num_used == 0
    assert scheduler.schedule() == Step()
