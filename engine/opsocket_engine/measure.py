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
class Case:
    """`batch` prompts of `prompt` random tokens each, then `decode` steps."""

    prompt: int
    batch: int
    decode: int


@dataclass
class Runs:
    """One case's results, run by run: tokens per second, and bytes of raw reading per second just before the run."""

    case: Case
    prompt_rates: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)
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
    """Every case `repeats` times, in turn, after one run of each that does not count. Greedy, end tokens ignored."""
    results = [Runs(case) for case in cases]
    generator = np.random.default_rng(0)
    for repeat in range(repeats + 1):
        for runs in results:
            read_rate = reader.bytes_per_second() if reader else 0.0
            prompt_rate, decode_rate = _run(engine, runs.case, generator)
            if repeat:
                runs.read_rates.append(read_rate)
                runs.prompt_rates.append(prompt_rate)
                runs.decode_rates.append(decode_rate)
    return results


def room(cases: Items[Case], max_step_tokens: int) -> int:
    """The context that an engine needs for these cases: first prompts already decode while the last are computed."""
    batch, prompt = max(case.batch for case in cases), max(case.prompt for case in cases)
    steps = -(-batch * prompt // max(1, max_step_tokens - batch))
    return prompt + steps + max(case.decode for case in cases) + 1


def _run(engine: Engine, case: Case, generator: np.random.Generator) -> tuple[float, float]:
    """Prompt and decode rate of one run. Decode counts steps in which every sequence decodes and nothing else runs."""
    params = SamplingParams(ignore_eos=True)
    before = engine.stats()
    requests = [
        engine.add_request(generator.integers(0, engine.config.vocab_size, case.prompt).tolist(), params)
        for _ in range(case.batch)
    ]
    while engine.stats().prompt_tokens - before.prompt_tokens < case.batch * case.prompt:
        engine.step()
    between = engine.stats()
    for _ in range(case.decode):
        engine.step()
    after = engine.stats()
    for request in requests:
        engine.abort(request)
    prompt_seconds = between.prompt_seconds - before.prompt_seconds
    decode_seconds = after.decode_seconds - between.decode_seconds
    return case.batch * case.prompt / prompt_seconds, case.batch * case.decode / decode_seconds


def decode_bytes(engine: Engine, case: Case, weight_bytes: int) -> float:
    """Bytes that one decode step has to read on average: `weight_bytes`, and each sequence's keys and values."""
    context = case.prompt + (case.decode + 1) / 2
    return weight_bytes + case.batch * context * engine.stats().token_bytes


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the matrices that every step reads in full, as the model's file stores them: all but an embedding that
    only has rows looked up."""
    names = set(matrix_shapes(checkpoint.config))
    if checkpoint.has("lm_head"):
        names.remove("embed_tokens")
    return sum(tensor.nbytes for name in names for tensor in checkpoint.weight(name).tensors.values())
