"""What each step computes: continuous batching with chunked prefill over a bounded KV cache.

First come, first served, by order of arrival:

1. Every running sequence that waits for its next token gets it, then prompts go on, in chunks, as far as the step's
   token budget reaches. Who finds no free block takes those of the latest arrival that is not yet in this step, or
   gives up its own: a preempted sequence goes back to its place in the queue and is computed again later, but for what
   it still finds in the prefix cache. The earliest arrival is never preempted for another, so there is always progress.
2. If nobody was preempted, the queue's head is admitted while there is budget, a place in the batch, and room for all
   its tokens beside one more block for each running sequence.

Method: iteration-level scheduling as in Orca (OSDI 2022), chunked prefill as in Sarathi-Serve (OSDI 2024).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from opsocket.cache import BlockCopy, BlockManager
from opsocket_engine.sequence import Chunk, Sequence


@dataclass
class Step:
    """The chunks of one step, and the block copies to carry out before it."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes one token and chooses the next one."""
        return all(chunk.stop - chunk.start == 1 == chunk.num_sampled for chunk in self.chunks)


class Scheduler:
    """Holds every sequence that is not finished; `blocks` knows the waiting ones as preempted."""

    def __init__(self, blocks: BlockManager, max_batch: int, max_step_tokens: int) -> None:
        self.blocks = blocks
        self.max_batch = max_batch
        self.max_step_tokens = max_step_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_shared_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.blocks.admit(sequence.key, sequence.tokens)
        self.blocks.preempt(sequence.key)
        bisect.insort(self.waiting, sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.blocks.free(sequence.key)

    def schedule(self) -> Step:
        """Choose the next step and reserve its slots. No chunks: there is nothing left to do."""
        step, budget, preempted = Step(), self.max_step_tokens, self.num_preemptions
        for sequence in sorted(self.running, key=lambda s: self._remaining(s) > 1):
            if sequence in self.running and budget:
                budget -= self._extend(step, sequence, budget)
        while self.waiting and budget and self.num_preemptions == preempted and self._admit(self.waiting[0]):
            budget -= self._extend(step, self.waiting.pop(0), budget)
        return step

    def reserve(self, step: Step, num_tokens: int) -> bool:
        """Slots for so many more tokens of each sequence of a step; for none where there are not blocks for all."""
        for number, chunk in enumerate(step.chunks):
            key, stop = chunk.sequence.key, chunk.stop + num_tokens
            if not self.blocks.can_grow(key, stop):
                for other in step.chunks[:number]:
                    self.blocks.truncate(other.sequence.key, other.stop)
                return False
            step.copies += self.blocks.grow(key, stop)
        return True

    @property
    def num_prompt_tokens_left(self) -> int:
        """Tokens that have to be computed, at most, before every sequence waits for one only."""
        waiting = sum(len(sequence.tokens) for sequence in self.waiting)
        return waiting + sum(max(0, s.num_prompt - self.blocks.num_computed(s.key)) for s in self.running)

    def complete(self, chunk: Chunk) -> list[Sequence]:
        """Take in that a chunk is computed; returns the sequences for which a token is to be chosen now. They are more
        than one where a prompt's samples part, which share its blocks until one writes."""
        parent = chunk.sequence
        self.blocks.commit(parent.key, chunk.stop)
        sampled = parent.part() if chunk.num_sampled else []
        for child in sampled[1:]:
            self.blocks.fork(parent.key, child.key)
            bisect.insort(self.running, child, key=_arrival)
        return sampled

    def append(self, sequence: Sequence, token: int) -> None:
        """Add the token chosen for a running sequence."""
        sequence.tokens.append(token)
        self.blocks.append(sequence.key, [token])

    def _remaining(self, sequence: Sequence) -> int:
        return len(sequence.tokens) - self.blocks.num_computed(sequence.key)

    def _extend(self, step: Step, sequence: Sequence, budget: int) -> int:
        """Give a running sequence a chunk; returns its length, 0 where it had to give up its blocks instead."""
        start = self.blocks.num_computed(sequence.key)
        stop = min(len(sequence.tokens), start + budget)
        while not self.blocks.can_grow(sequence.key, stop):
            in_step = {chunk.sequence for chunk in step.chunks}
            later = self.running[self.running.index(sequence) + 1 :]
            victim = next((s for s in reversed(later) if s not in in_step), sequence)
            self._preempt(victim)
            if victim is sequence:
                return 0
        step.copies += self.blocks.grow(sequence.key, stop)
        step.chunks.append(Chunk(sequence, start, stop))
        return stop - start

    def _admit(self, sequence: Sequence) -> bool:
        """Take up the queue's head if there is room; the caller pops it from the queue."""
        if sum(s.unparted for s in self.running) + sequence.unparted > self.max_batch:
            return False
        shared = self.blocks.resume(sequence.key)
        spare = self.blocks.block_size * len(self.running)
        if not self.blocks.can_grow(sequence.key, len(sequence.tokens) + spare):
            self.blocks.preempt(sequence.key)
            return False
        self.num_shared_tokens += shared
        bisect.insort(self.running, sequence, key=_arrival)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.blocks.preempt(sequence.key)
        self.running.remove(sequence)
        bisect.insort(self.waiting, sequence, key=_arrival)
        self.num_preemptions += 1


def _arrival(sequence: Sequence) -> tuple[int, int]:
    return sequence.key
