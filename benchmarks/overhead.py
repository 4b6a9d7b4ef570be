"""What a call costs beside its work: operators of one small row, from Python and in a captured list, beside torch's.

    .venv/bin/python benchmarks/overhead.py [--threads N] [--rounds N] [--json FILE]

Everything is measured in turn, `--rounds` times, and medians are printed, in microseconds per operator. "long way":
what a run costs that is not like one before. "empty": a native command that does nothing, called from Python.
`cache_write` of one token is measured with the caches of all layers at hand, and after more memory was read than the
processor's caches hold, as a step of decoding does between two writes (SmolLM2-135M: 30 layers, 3 KV heads of 64).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import opsocket
from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
    CacheSpec,
    CacheWriteSpec,
    KVFormat,
    Request,
    RMSNormSpec,
    Session,
    SiluMulSpec,
    SlotBatch,
)
from opsocket_cpu.native.command import Command, Op

CALLS = 2000
WIDTH = 64
LAYERS, KV_HEADS, HEAD_DIM = 30, 3, 64
READ_BYTES = 96 << 20

Timed = Callable[[], float]


def per_call(call: Callable[[], object]) -> Timed:
    """Seconds of one call, of many in turn."""

    def timed() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - start) / CALLS

    return timed


def eager(session: Session) -> dict[str, Timed]:
    """Operators of one row, and torch's for the same."""
    x, y, out = (torch.randn(1, WIDTH) for _ in range(3))
    weight, ids = torch.ones(WIDTH), torch.empty(1, dtype=torch.int64)
    add, other, norm, silu, argmax = (
        session.plan(Request(spec))
        for spec in (AddSpec(WIDTH), AddSpec(WIDTH), RMSNormSpec(WIDTH, 1e-5), SiluMulSpec(WIDTH), ArgmaxSpec(WIDTH))
    )
    empty = Command.pack(Op.NONE, 1, 0)
    others = [(x, y, out), (torch.randn(2, WIDTH), torch.randn(2, WIDTH), torch.empty(2, WIDTH))]

    def long_way() -> None:
        others.reverse()
        a, b, to = others[0]
        other.run(a, b, out=to)

    functional = torch.nn.functional
    calls: dict[str, Callable[[], object]] = {
        "empty": lambda: session.library.run_one(empty, session.threads),
        "add, long way": long_way,
        "add, out given": lambda: add.run(x, y, out=out),
        "add, out given: torch": lambda: torch.add(x, y, out=out),
        "add, out made": lambda: add.run(x, y),
        "add, out made: torch": lambda: torch.add(x, y),
        "rms_norm, out given": lambda: norm.run(x, weight, out=out),
        "rms_norm, out made: torch": lambda: functional.rms_norm(x, (WIDTH,), weight, 1e-5),
        "silu_mul, out given": lambda: silu.run(x, y, out=out),
        "silu_mul, out given: torch": lambda: torch.mul(functional.silu(x), y, out=out),
        "argmax, out given": lambda: argmax.run(x, out=ids),
        "argmax, out given: torch": lambda: torch.argmax(x, -1, out=ids),
    }
    return {name: per_call(call) for name, call in calls.items()}


def captured(session: Session, length: int = 300) -> Timed:
    """Seconds per command of a list of sums that each wait for the one before."""
    add = session.plan(Request(AddSpec(WIDTH)))
    x, y, out = (torch.randn(1, WIDTH) for _ in range(3))
    with session.capture() as graph:
        for _ in range(length):
            add.run(x, y, out=out)

    def timed() -> float:
        start = time.perf_counter()
        for _ in range(20):
            graph.replay()
        return (time.perf_counter() - start) / (20 * length)

    return timed


def cache_write(session: Session, code: Any, *, cold: bool) -> Timed:
    """Seconds per layer of a captured list that writes one token into each layer's cache."""
    spec = CacheSpec(64, 16, KV_HEADS, HEAD_DIM, HEAD_DIM, KVFormat(code), KVFormat(code))
    plan, add = session.plan(Request(CacheWriteSpec("bf16"), spec)), session.plan(Request(AddSpec(WIDTH)))
    layers = [
        (session.allocate_cache(spec), *(torch.randn(1, KV_HEADS, HEAD_DIM).bfloat16() for _ in "kv"))
        for _ in range(LAYERS)
    ]
    plan.update(SlotBatch(np.array([0])))
    with session.capture() as graph:
        for cache, k, v in layers:
            plan.run(cache, k, v)
    x = torch.randn(1, WIDTH)
    with session.capture() as awake:
        add.run(x, x, out=x)
    weights = np.ones(READ_BYTES // 8, np.int64)
    token = 0

    def timed() -> float:
        nonlocal token
        seconds = []
        for _ in range(5):
            token = (token + 1) % spec.num_slots
            plan.update(SlotBatch(np.array([token])))
            if cold:
                weights.sum()
                for _, k, v in layers:
                    k.add_(0)
                    v.add_(0)
            for _ in range(20):  # neither the interpreter nor the threads are what is measured
                awake.replay()
            start = time.perf_counter()
            graph.replay()
            seconds.append((time.perf_counter() - start) / LAYERS)
        return statistics.median(seconds)

    return timed


def measure(threads: int, rounds: int) -> dict[str, float]:
    """Name -> seconds, the median."""
    with opsocket.open("cpu", threads=threads) as session:
        timed = eager(session)
        timed["add, captured"] = captured(session)
        for code in ("bf16", "f8e4m3fn"):
            timed[f"cache_write {code}, captured, caches warm"] = cache_write(session, code, cold=False)
            timed[f"cache_write {code}, captured, caches cold"] = cache_write(session, code, cold=True)
        samples: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds):
            for name, one in timed.items():
                samples[name].append(one())
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads, with commas between")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {count: measure(int(count), args.rounds) for count in args.threads.split(",")}
    print(f"{'microseconds per operator; threads':44}" + "".join(f"{count:>8}" for count in found))
    for name in next(iter(found.values())):
        print(f"{name:44}" + "".join(f"{values[name] * 1e6:8.3f}" for values in found.values()))
    if args.json:
        args.json.write_text(json.dumps({"seconds": found, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
