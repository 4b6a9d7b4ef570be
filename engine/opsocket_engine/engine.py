"""The engine: requests in, text out, many at a time."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from opsocket.cache import BlockManager
from opsocket.operators import Array, ContractError, ResourceError, Session
from opsocket_engine.batch import assemble, assemble_decode
from opsocket_engine.captured import CapturedDecoder, captures, captures_mixed, captures_sampled
from opsocket_engine.checkpoint import Checkpoint, open_checkpoint
from opsocket_engine.locate import locate
from opsocket_engine.model import Decoder
from opsocket_engine.options import EngineOptions
from opsocket_engine.requests import cache_spec, decoder_requests, max_context
from opsocket_engine.sampling import Sampler, SamplingParams, sample_batch
from opsocket_engine.scheduler import Scheduler, Step
from opsocket_engine.sequence import Chunk, Sequence
from opsocket_engine.stats import EngineStats
from opsocket_engine.stream import Detokenizer, StopMatcher

if TYPE_CHECKING:
    from opsocket_engine.tokenizer import Tokenizer

Prompt = str | Items[int]
FinishReason = Literal["stop", "length"]

FLOW_S: Final = 0.05
"""Tokens that come out together are not held back for longer than this: text still flows."""


@dataclass(frozen=True)
class Output:
    """What one step adds to one sample of a request. text: may be empty, and lags behind the tokens where a character
    or a stop string is unfinished. finish_reason: None while the sample goes on."""

    request: int
    sample: int
    token_id: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Completion:
    """A finished sample. text is without the stop string or end token that finished it; token_ids are all."""

    request: int
    sample: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


class Engine:
    """Continuous batching of one model on one session; not shared between threads.

    tokenizer: None where prompts come as ids and no text is wanted. progress: is told while weights are loaded how many
    bytes of the file's matrices are on the session, and how many there are.
    """

    def __init__(
        self,
        session: Session,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer | None = None,
        options: EngineOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        options = options or EngineOptions()
        config = checkpoint.config
        num_blocks = options.num_blocks or _num_blocks(session, checkpoint, options)
        self.requests = decoder_requests(config, lambda name: checkpoint.weight(name).format.id, options, num_blocks)
        self.max_context = max_context(config, options, num_blocks)
        self.options = options
        self.config = config
        self._session = session
        self._tokenizer = tokenizer
        self._decoder = Decoder(session, checkpoint, self.requests, progress)
        self._captured: CapturedDecoder | None = None
        self._samples_captured = captures_sampled(session, self.requests)
        if options.capture and captures(session, self.requests):
            full = options.max_step_tokens if captures_mixed(session, self.requests) else None
            self._captured = CapturedDecoder(session, self._decoder, full, options.max_batch)
        plans = self._decoder.plans
        self._sampler = Sampler(session, plans[self.requests.argmax], plans[self.requests.sample])
        self.blocks = BlockManager(num_blocks, options.block_size, prefix_sharing=options.prefix_sharing)
        self._scheduler = Scheduler(self.blocks, options.max_batch, options.max_step_tokens)
        self._texts: dict[Sequence, _Text] = {}
        self._num_requests = 0
        self._step_seconds: dict[int, float] = {}
        self._stats = EngineStats(
            num_blocks=num_blocks,
            block_size=options.block_size,
            cache_bytes=self._decoder.cache_bytes,
            weight_bytes=self._decoder.weight_bytes,
            step_bytes=self._decoder.step_bytes,
        )

    @classmethod
    def load(cls, session: Session, model: str, options: EngineOptions | None = None) -> Engine:
        """An engine for what `locate` finds under a model's name or path."""
        from opsocket_engine.tokenizer import load_tokenizer

        files = locate(model)
        return cls(session, open_checkpoint(files), load_tokenizer(files), options)

    def add_request(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Queue a prompt, as text or token ids; returns the number that its outputs carry.

        ContractError where the prompt is empty, leaves no room for a token, or asks for what this engine can't do.
        """
        params = params or SamplingParams()
        tokens = self._encode(prompt)
        if not 0 < len(tokens) < self.max_context:
            raise ContractError("prompt", f"1 to {self.max_context - 1} tokens", len(tokens))
        if not (min(tokens) >= 0 and max(tokens) < self.config.vocab_size):
            raise ContractError(
                "prompt", f"token ids from 0 to {self.config.vocab_size - 1}", [min(tokens), max(tokens)]
            )
        if params.n > self.options.max_batch:
            raise ContractError("n", f"at most max_batch={self.options.max_batch}", params.n)
        if params.stop and self._tokenizer is None:
            raise ContractError("stop", "no stop strings, since the engine has no tokenizer", params.stop)
        request = self._num_requests
        seed = params.seed if params.seed is not None else (self.options.seed + (request << 32)) % (1 << 64)
        self._scheduler.add(Sequence(request, params, seed, tokens, len(tokens), unparted=params.n))
        self._num_requests += 1
        return request

    def abort(self, request: int) -> None:
        """Drop what is left of a request; nothing happens where it is finished."""
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.request == request:
                self._scheduler.remove(sequence)
                self._texts.pop(sequence, None)

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def num_prompt_tokens_left(self) -> int:
        """Tokens that have to be computed before every sequence decodes."""
        return self._scheduler.num_prompt_tokens_left

    def step(self) -> list[Output]:
        """Run one step, or a replay of several, and return what it added: one output for each token of a sample, a
        sample's in order."""
        start = time.perf_counter()
        step = self._scheduler.schedule()
        if not step.chunks:
            return []
        if self._captured is None or not step.is_decode:
            batch = assemble(step, self.blocks)
            is_replayed = self._captured is not None and self._captured.takes(batch)
            forward = self._captured.forward if is_replayed else self._decoder.forward
            outputs = self._complete(step.chunks, forward(batch))
            self._count(step, 1, len(outputs), is_replayed, time.perf_counter() - start)
            return outputs
        sequences = [chunk.sequence for chunk in step.chunks]
        greedy = all(sequence.params.is_greedy for sequence in sequences)
        known = greedy or self._samples_captured  # whether a graph can choose the tokens
        steps = self._num_replayed(step) if known else 1
        samples = [sample_batch(sequences, ahead) for ahead in range(steps)] if known and not greedy else None
        logits, chosen = self._captured.decode(assemble_decode(step, self.blocks, steps), samples)
        outputs = self._complete(step.chunks, logits, chosen[0] if known else None)
        outputs += self._complete_others(step.chunks, outputs, chosen[1:])
        seconds = time.perf_counter() - start
        self._step_seconds[len(step.chunks)] = seconds / steps
        self._count(step, steps, len(outputs), True, seconds)
        return outputs

    def _num_replayed(self, step: Step) -> int:
        """How many decode steps to run in one replay, with slots for them reserved: `replay_steps`, or 1."""
        steps, sequences = self.options.replay_steps, [chunk.sequence for chunk in step.chunks]
        left = min(min(s.num_left, self.max_context - len(s.tokens)) for s in sequences)
        allowed = (
            1 < steps <= left
            and steps * self._step_seconds.get(len(sequences), math.inf) <= FLOW_S
            # Who waits for a first token waits for one step; penalties are for the tokens that are chosen meanwhile.
            and all(sequence.num_generated and not sequence.params.has_penalties for sequence in sequences)
        )
        return steps if allowed and self._scheduler.reserve(step, steps - 1) else 1

    def _complete(self, chunks: Items[Chunk], logits: Array | None, chosen: Array | None = None) -> list[Output]:
        """Take in that a step is computed, and choose its tokens from its logits, unless they are chosen already."""
        sequences = [sequence for chunk in chunks for sequence in self._scheduler.complete(chunk)]
        if chosen is not None:
            tokens = self._session.download(chosen).tolist()
        else:
            tokens = [] if logits is None else self._sampler(logits, sequences).tolist()
        return [self._accept(sequence, token) for sequence, token in zip(sequences, tokens, strict=True)]

    def _complete_others(self, chunks: Items[Chunk], first: Items[Output], tokens: Items[Array]) -> list[Output]:
        """The same of a replay's other steps, which chose `tokens`, i64[T] each, after each chunk's `first`. What was
        computed of a sample past its end is dropped."""
        outputs, last = [], list(first)
        for row_tokens in tokens:
            chosen = self._session.download(row_tokens).tolist()
            chunks = [chunk.following() for chunk in chunks]
            for row, chunk in enumerate(chunks):
                if last[row].finish_reason is None:
                    self._scheduler.complete(chunk)
                    last[row] = self._accept(chunk.sequence, chosen[row])
                    outputs.append(last[row])
        return outputs

    def stream(self, prompts: Items[Prompt], params: SamplingParams | None = None) -> Iterator[Output]:
        """Outputs as they come, requests numbered from the first prompt on. Leaving the iterator drops the rest."""
        numbers: list[int] = []
        try:
            for prompt in prompts:
                numbers.append(self.add_request(prompt, params))
            while self.has_work:
                yield from self.step()
        finally:
            for number in numbers:
                self.abort(number)

    def generate(self, prompts: Items[Prompt], params: SamplingParams | None = None) -> list[Completion]:
        """All samples of all prompts, finished, in the prompts' order."""
        outputs: dict[tuple[int, int], list[Output]] = {}
        for output in self.stream(prompts, params):
            outputs.setdefault((output.request, output.sample), []).append(output)
        return [_completion(outputs[key]) for key in sorted(outputs)]

    def stats(self) -> EngineStats:
        """What has been done since the engine was made, and how full its cache is."""
        return replace(
            self._stats,
            preemptions=self._scheduler.num_preemptions,
            shared_tokens=self._scheduler.num_shared_tokens,
            used_blocks=self.blocks.num_used,
            peak_blocks=self.blocks.stats().peak_used,
        )

    def close(self) -> None:
        """Drop what is unfinished, and give weights and caches back. InconsistentCacheError where blocks got lost."""
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self.abort(sequence.request)
        self.blocks.check()
        del self._captured, self._decoder, self._sampler

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return [operator.index(token) for token in prompt]
        if self._tokenizer is None:
            raise ContractError("prompt", "token ids, since the engine has no tokenizer", "text")
        return self._tokenizer.encode(prompt)

    def _accept(self, sequence: Sequence, token: int) -> Output:
        """Take in the token chosen for a sequence, which may end it."""
        self._scheduler.append(sequence, token)
        params = sequence.params
        ends = token in params.stop_token_ids or (token in self.config.eos_ids and not params.ignore_eos)
        full = sequence.num_generated == params.max_tokens or len(sequence.tokens) == self.max_context
        text = ""
        if self._tokenizer is not None:
            if sequence not in self._texts:
                self._texts[sequence] = _Text(self._tokenizer, sequence)
            text, matched = self._texts[sequence].push(token, ends=ends, last=ends or full)
            ends = ends or matched
        reason: FinishReason | None = "stop" if ends else "length" if full else None
        if reason:
            self._scheduler.remove(sequence)
            self._texts.pop(sequence, None)
        return Output(sequence.request, sequence.sample, token, text, reason)

    def _count(self, step: Step, steps: int, generated: int, captured: bool, seconds: float) -> None:
        decoded = sum(chunk.is_decode for chunk in step.chunks)
        prompt = sum(chunk.stop - chunk.start for chunk in step.chunks) - decoded
        if steps > 1:
            decoded += generated - len(step.chunks)
        share = seconds / (decoded + prompt)
        stats = self._stats
        stats.steps += steps
        stats.captured_steps += steps * captured
        stats.prompt_tokens += prompt
        stats.decode_tokens += decoded
        stats.generated_tokens += generated
        stats.prompt_seconds += share * prompt
        stats.decode_seconds += share * decoded


class _Text:
    """The text of one sequence as it grows."""

    def __init__(self, tokenizer: Tokenizer, sequence: Sequence) -> None:
        self._detokenizer = Detokenizer(tokenizer, after=sequence.tokens[: sequence.num_prompt])
        self._stops = StopMatcher(sequence.params.stop)

    def push(self, token: int, *, ends: bool, last: bool) -> tuple[str, bool]:
        """(text to show, whether a stop string is complete). ends: the token ends the text and is no part of it."""
        text = "" if ends else self._stops.push(self._detokenizer.push(token))
        if last and self._stops.matched is None:
            text += self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        return text, self._stops.matched is not None


def _completion(outputs: Items[Output]) -> Completion:
    last = outputs[-1]
    assert last.finish_reason is not None
    token_ids = tuple(output.token_id for output in outputs)
    text = "".join(output.text for output in outputs)
    return Completion(last.request, last.sample, token_ids, text, last.finish_reason)


def _num_blocks(session: Session, checkpoint: Checkpoint, options: EngineOptions) -> int:
    """As many blocks as the options' share of free memory holds, and no more than full batches can fill."""
    config = checkpoint.config
    context = min(config.max_position, options.max_context or config.max_position)
    wanted = options.max_batch * -(-context // options.block_size)
    layouts = session.cache_layouts(cache_spec(config, options, 1))
    if not layouts:
        return wanted  # planning gives the reasons
    memory = session.memory()
    budget = (memory.total - (memory.used or 0)) * options.memory_fraction
    block = layouts[0].bytes_per_block * config.num_layers
    if budget < block:
        raise ResourceError("bytes of device memory for one cache block", block, int(budget))
    return min(wanted, int(budget // block))
