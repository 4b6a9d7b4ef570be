"""One text in the making, and the part of it that one step computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from opsocket_engine.history import History
from opsocket_engine.sampling import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One sample of one request.

    request: the request's number, which grows in order of arrival. sample: from 0 to n - 1 within it. tokens: the
    prompt's and those generated. unparted: how many samples it stands for: n until its prompt is computed, then 1,
    since the others have become sequences of their own. history: what its penalties go by.
    """

    request: int
    params: SamplingParams
    seed: int
    tokens: list[int]
    num_prompt: int
    sample: int = 0
    unparted: int = 1
    history: History = field(default_factory=History, repr=False)

    @property
    def key(self) -> tuple[int, int]:
        """Names the sequence to the block manager; the order of keys is the order of arrival."""
        return self.request, self.sample

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_left(self) -> float:
        """How many tokens may still be generated."""
        most = self.params.max_tokens
        return math.inf if most is None else most - self.num_generated

    def part(self) -> list[Sequence]:
        """Itself and, the first time, the other samples of its prompt."""
        samples = range(self.sample + 1, self.sample + self.unparted)
        self.unparted = 1
        others = (Sequence(self.request, self.params, self.seed, self.tokens[:], self.num_prompt, i) for i in samples)
        return [self, *others]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens start, ..., stop - 1 of a sequence, computed in one step."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def num_sampled(self) -> int:
        """How many tokens are chosen from the logits of its last one; 0 where the sequence's end is not reached."""
        return self.sequence.unparted if self.stop == len(self.sequence.tokens) else 0

    def following(self) -> Chunk:
        """The one token after it."""
        return Chunk(self.sequence, self.stop, self.stop + 1)

    @property
    def is_decode(self) -> bool:
        """Whether this is the one token that the step before chose."""
        return self.stop - self.start == 1 and self.start >= self.sequence.num_prompt
