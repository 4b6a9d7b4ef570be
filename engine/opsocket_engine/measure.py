"""How fast an engine is, and the machine's limit beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from opsocket_engine.canonical import matrix_shapes
from opsocket_engine.checkpoint import Checkpoint
from opsocket_engine.engine import Engine
from opsocket_engine.sampling import SamplingParams

READ_BYTES = 640 << 20
"""More than any cache holds: a smaller buffer measures the cache."""


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Items[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Prompts:
    """`batch` prompts of `tokens` random tokens each, new ones in every run."""

    tokens: int
    batch: int

    @property
    def context(self) -> int:
        """Tokens that a sequence has in the end."""
        return self.tokens + 1


@dataclass(frozen=True)
class Decode:
    """`steps` steps of `batch` sequences side by side that have `start` tokens in the cache (1 for 0), in replays of up
    to `together` steps: the last one may go beyond."""

    start: int
    batch: int
    steps: int
    together: int = 1

    @property
    def context(self) -> int:
        """Tokens that a sequence has in the end: other sequences' prompts may take some steps longer than its own, and
        what is recorded first is not counted."""
        return max(self.start, 1) + self.steps + self.batch + 2 * self.together


Case = Prompts | Decode


@dataclass
class Runs:
    """One case's results, run by run: tokens per second, and bytes of raw reading per second just before the run."""

    case: Case
    rates: list[float] = field(default_factory=list)
    read_rates: list[float] = field(default_factory=list)


class HostReader:
    """Reads `READ_BYTES` of host memory as fast as NumPy can on some threads: the limit of all that streams weights."""

    def __init__(self, threads: int) -> None:
        # Not zeros, whose pages would all be one.
        self._parts = np.array_split(np.arange(READ_BYTES // 8, dtype=np.int64), threads)

    def bytes_per_second(self) -> float:
        with ThreadPoolExecutor(len(self._parts)) as pool:
            start = time.perf_counter()
            for _ in pool.map(np.max, self._parts):
                pass
            return READ_BYTES / (time.perf_counter() - start)


def measure(engine: Engine, cases: Items[Case], repeats: int, reader: HostReader | None) -> list[Runs]:
    """Every case `repeats` times, in turn, after one run of each that does not count. Greedy, end tokens ignored.

    With prefix sharing, and room for them all (`blocks_for`), what decoding starts from is computed in the first run
    only: each of a case's sequences has keys and values of its own, and finds them again.
    """
    results = [Runs(case) for case in cases]
    generator = np.random.default_rng(0)
    for repeat in range(repeats + 1):
        for number, runs in enumerate(results):
            own = np.random.default_rng(number) if isinstance(runs.case, Decode) else generator
            prompts = _prompts(engine, runs.case, own)
            if isinstance(runs.case, Decode):
                rate, read_rate = _decode(engine, runs.case, prompts, reader)
            else:
                rate, read_rate = _prefill(engine, prompts), 0.0
            if repeat:
                runs.rates.append(rate)
                runs.read_rates.append(read_rate)
    return results


def blocks_for(cases: Items[Case], block_size: int) -> int:
    """Cache blocks in which everything that decoding starts from stays, beside one run of any case."""
    sizes = [(isinstance(case, Decode), case.batch * -(-case.context // block_size)) for case in cases]
    return sum(size for kept, size in sizes if kept) + max(size for _, size in sizes)


def decode_bytes(engine: Engine, case: Decode, weight_bytes: int) -> float:
    """Bytes that one decode step has to read on average: `weight_bytes`, and each sequence's keys and values."""
    context = max(case.start, 1) + (case.steps + 1) / 2
    return weight_bytes + case.batch * context * engine.stats().token_bytes


def _prompts(engine: Engine, case: Case, generator: np.random.Generator) -> list[list[int]]:
    length = case.tokens if isinstance(case, Prompts) else max(case.start, 1)
    return [generator.integers(0, engine.config.vocab_size, length).tolist() for _ in range(case.batch)]


def _prefill(engine: Engine, prompts: list[list[int]]) -> float:
    """Tokens per second of computing the prompts; what decodes beside them on the way does not count."""
    before = engine.stats()
    requests = [engine.add_request(prompt, SamplingParams(ignore_eos=True)) for prompt in prompts]
    _until_decoding(engine)
    after = engine.stats()
    for request in requests:
        engine.abort(request)
    return (after.prompt_tokens - before.prompt_tokens) / (after.prompt_seconds - before.prompt_seconds)


def _decode(engine: Engine, case: Decode, prompts: list[list[int]], reader: HostReader | None) -> tuple[float, float]:
    """(tokens per second of steps in which every sequence decodes and nothing else runs, raw reading before them)."""
    requests = [engine.add_request(prompt, SamplingParams(ignore_eos=True)) for prompt in prompts]
    _until_decoding(engine)
    engine.step()  # records what is replayed from now on
    read_rate = reader.bytes_per_second() if reader else 0.0
    before = after = engine.stats()
    # Who decoded for long while others' prompts were computed may end by its context.
    while engine.has_work and after.decode_tokens < before.decode_tokens + case.batch * case.steps:
        engine.step()
        after = engine.stats()
    for request in requests:
        engine.abort(request)
    tokens = after.decode_tokens - before.decode_tokens
    return tokens / (after.decode_seconds - before.decode_seconds), read_rate


def _until_decoding(engine: Engine) -> None:
    """Step until every prompt is computed."""
    while engine.num_prompt_tokens_left:
        engine.step()


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the matrices that every step reads in full, as the model's file stores them: all but an embedding that
    only has rows looked up, and of experts those that one token meets."""
    names = set(matrix_shapes(checkpoint.config))
    if checkpoint.has("lm_head"):
        names.remove("embed_tokens")
    experts = checkpoint.config.experts
    total = 0.0
    for name in names:
        size = checkpoint.weight(name).nbytes
        total += size * experts.share if experts and ".experts." in name else size
    return int(total)
