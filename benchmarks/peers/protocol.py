"""What a system under measurement speaks with the driver: one line of JSON each way. Needs the standard library only.

A worker is a process in the system's own environment: `python peers/SYSTEM.py --threads N MODEL [OPTION ...]`. It loads
the model, says `{"ready": ...}` with its name and versions, and answers each job `{"prompts": [[id, ...], ...],
"decode": n}` with `{"prompt_seconds": s, "decode_seconds": s, "tokens": [[id, ...], ...]}`: greedy, end tokens ignored,
n + 1 tokens for each prompt, of which the first belongs to the prompt's time. decode_seconds are of n steps in which
every sequence decodes. Every prompt is computed anew: no cache of an earlier job may serve a later one.

A worker for single operators (`python peers/operators_SYSTEM.py --threads N --backend B`) answers `{"case": {...}}`,
which it prepares, with `{"bytes": read by one call, "skip": why it can't, or null}`, and `{"calls": n}` with
`{"seconds": [...]}`, one for each call, or one for all where calls are enqueued. Calls take turns through copies of the
data that together are larger than any cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TextIO

ROTATED_BYTES = int(os.environ.get("OPSOCKET_BENCH_ROTATED_BYTES") or 640 << 20)
"""Of the copies together; less is for who wants to see that a case runs, and not how fast."""
STREAMED_ROWS = 16
"""A product of at most so many rows reads its weights from memory; of more, it may find them in a cache."""
GPU_STREAMED_ROWS = 64
"""The same of a GPU, where an operation costs less beside a byte."""

Run = Callable[[list[list[int]], int], tuple[float, float, list[list[int]]]]


def arguments(description: str, model: bool = True, **options: Any) -> argparse.Namespace:
    """The command line of a worker. options: name -> what add_argument takes. context: tokens of all sequences
    together, in the largest case. From here on what libraries print on stdout goes to stderr."""
    answers()
    parser = argparse.ArgumentParser(description=description)
    if model:
        parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    if not model:
        parser.add_argument("--backend", default="cpu", help="cpu, or a GPU's: cuda, rocm:1")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=8)
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


@cache
def answers() -> TextIO:
    """Where answers go: what was stdout at the first call."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return stream


def copies(size: int) -> int:
    """How many copies of `size` bytes calls have to take turns through."""
    return max(2, -(-ROTATED_BYTES // size))


class Routes(NamedTuple):
    """turns: of each call, the experts of each token. layers: how many layers' weights calls take turns through; call i
    meets those of layer i % layers. touched: experts that a call reads, in the mean."""

    turns: list[list[list[int]]]
    layers: int
    touched: float


def routes(case: dict[str, Any], expert_bytes: int) -> Routes:
    """The same for every system. Experts of one token come again only after all others of all layers, so that they are
    read from memory; those of several tokens are random."""
    of, top, m = case["experts"], case["top"], case["m"]
    layers = copies(of * expert_bytes)
    if m == 1:
        firsts = range(0, of - top + 1, top)
        turns = [[list(range(first, first + top))] for first in firsts for _ in range(layers)]
    else:
        turns = [[sorted(random.Random(f"{i} {j}").sample(range(of), top)) for j in range(m)] for i in range(layers)]
    return Routes(turns, layers, sum(len({e for token in turn for e in token}) for turn in turns) / len(turns))


class Prepared(NamedTuple):
    """call: one call on copy number i. size: bytes of data that it reads."""

    call: Callable[[int], object]
    count: int
    size: int


def serve_operators(
    name: str,
    versions: Sequence[str],
    prepare: Callable[[dict[str, Any]], Prepared | str],
    wait: Callable[[], object] | None = None,
) -> None:
    """Answer jobs on single operators. prepare: a case's call, or why there is none. wait: until all calls have
    finished, where they return before; then the calls of a job are timed together, and each has its share."""
    answers().write(json.dumps({"ready": name, "versions": list(versions)}) + "\n")
    prepared: Prepared | None = None
    at = 0
    for line in sys.stdin:
        job = json.loads(line)
        if "case" in job:
            prepared = None  # give back the last case's memory before the next one's is taken
            found = prepare(job["case"])
            if isinstance(found, str):
                answer: dict[str, Any] = {"bytes": 0, "skip": found}
            else:
                prepared, answer = found, {"bytes": found.size, "skip": None}
                for i in range(min(prepared.count, 3)):
                    prepared.call(i)
        else:
            assert prepared is not None
            seconds = []
            if wait is not None:
                wait()
            began = time.perf_counter()
            for _ in range(job["calls"]):
                at = (at + 1) % prepared.count
                start = time.perf_counter()
                prepared.call(at)
                seconds.append(time.perf_counter() - start)
            if wait is not None:
                wait()
                seconds = [(time.perf_counter() - began) / job["calls"]]
            answer = {"seconds": seconds}
        answers().write(json.dumps(answer) + "\n")


def serve(name: str, versions: Sequence[str], run: Run, **bytes_read: int) -> None:
    """Answer jobs until the driver closes its end. bytes_read: what decoding reads, where the system says so:
    step_bytes of weights in each step, token_bytes of each token in the cache."""
    answers().write(json.dumps({"ready": name, "versions": list(versions), **bytes_read}) + "\n")
    for line in sys.stdin:
        job = json.loads(line)
        prompt_seconds, decode_seconds, tokens = run(job["prompts"], job["decode"])
        answer = {"prompt_seconds": prompt_seconds, "decode_seconds": decode_seconds, "tokens": tokens}
        answers().write(json.dumps(answer) + "\n")
