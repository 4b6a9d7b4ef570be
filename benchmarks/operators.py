"""Single operators beside named peers and beside the machine's limits, measured in the same run, in turn (A B A B ...).

    .venv/bin/python benchmarks/operators.py [--only matmul,decode,prefill] [--systems ...] [--json FILE]

Work that streams memory (matmul of few rows, decode attention) is judged against a raw read of memory between the
samples, work that computes (matmul of many rows, prefill) against the rate of the instructions themselves. Weights and
caches are rotated: together they are larger than any cache. The peers are processes (`peers/operators_*.py`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import install  # noqa: E402
from worker import System, Worker, held  # noqa: E402

from opsocket_cpu import host  # noqa: E402
from opsocket_cpu.native.library import library  # noqa: E402
from opsocket_cpu.native.limits import Reader, operations_per_second  # noqa: E402

OURS = "opsocket"
SETTLE_SECONDS = 0.05
"""Before each sample: threads of the system before it may spin for a while after its last call."""
SYSTEMS = {
    OURS: System("operators_opsocket.py", None),
    "torch": System("operators_torch.py", None),
    "onnxruntime": System("operators_onnxruntime.py", None),
    "openvino": System("operators_openvino.py", "openvino"),
    "ggml": System("operators_ggml.py", "llama_cpp"),
    "vllm": System("operators_vllm.py", "vllm"),
}


@dataclass(frozen=True)
class Case:
    """One operator's work. limit: "read" where memory decides, else the kind of number that is computed with.
    operations: of one call, a product and its sum being two."""

    kind: str
    label: str
    limit: str
    operations: float
    facts: dict[str, Any]


def matmul(fmt: str, bits: int, group: int, minimums: bool, n: int, k: int, m: int) -> Case:
    facts = {"op": "matmul", "format": fmt, "bits": bits, "group": group, "minimums": minimums, "n": n, "k": k, "m": m}
    return Case("matmul", f"{fmt} {n}x{k} M={m}", "read" if m == 1 else "int8", 2.0 * m * n * k, facts)


def attention(
    cache: str,
    context: int,
    batch: int,
    *,
    q_len: int = 1,
    heads: tuple[int, int, int] = (32, 8, 128),
    fast: bool = False,
) -> Case:
    q_heads, kv_heads, dim = heads
    facts = {
        "op": "attention", "cache": cache, "context": context, "batch": batch, "q_len": q_len, "page": 16,
        "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": dim,
        "dtype": "bf16" if fast else "f32", "probabilities": "bf16" if fast else "f32",
    }  # fmt: skip
    kind = "decode" if q_len == 1 else "prefill"
    seen = context if q_len == 1 else q_len * (q_len + 1) / 2
    label = f"{cache} cache, {q_heads}/{kv_heads} heads of {dim}, {batch} x {context}{', all bf16' if fast else ''}"
    return Case(
        kind, label, "read" if q_len == 1 else "bf16" if fast else "f32", 4.0 * batch * q_heads * dim * seen, facts
    )


SHAPES = ((3584, 3584), (576, 576), (1536, 576), (576, 1536))
A8 = (
    ("q4_0_a8", 4, 32, False),
    ("q4_1_a8", 4, 32, True),
    ("i4_g128_a8", 4, 128, False),
    ("i8_channel_a8", 8, 0, False),
)
OTHERS = (("q4_0", 4, 32, False), ("q4_1", 4, 32, True), ("i2_g64_a8", 2, 64, False))
CONTEXTS = ((1024, 1), (4096, 1), (16384, 1), (1024, 8), (4096, 8))
CURVES = {
    "contexts": [
        attention(cache, context, 1, fast=fast)
        for fast in (True, False)
        for cache in ("bf16", "f8e4m3fn", "i8", "i4")
        for context in (256, 1024, 4096, 16384)
    ],
    "batches": [matmul("q4_0_a8", 4, 32, False, 3584, 3584, m) for m in (1, 2, 4, 8, 16)]
    + [attention("bf16", 1024, batch, fast=True) for batch in (1, 2, 4, 8, 16)],
}
"""Cost against the length of a context, and against how many sequences there are."""
SMOLLM2 = (9, 3, 64)
MEASURED = [
    *(matmul(*fmt, *shape, m) for shape in SHAPES for fmt in A8 for m in (1, 8, 128, 512)),
    *(matmul(*fmt, 3584, 3584, m) for fmt in OTHERS for m in (1, 128)),
    *(attention(cache, *context) for cache in ("bf16", "f8e4m3fn", "i8", "i4") for context in CONTEXTS),
    *(attention(cache, *context, fast=True) for cache in ("bf16", "f8e4m3fn", "i8", "i4") for context in CONTEXTS),
    *(attention("bf16", 1024, batch, heads=SMOLLM2) for batch in (1, 8)),
    *(attention("bf16", n, 1, q_len=n, fast=fast) for n in (512, 2048) for fast in (True, False)),
    *(attention("bf16", n, 1, q_len=n, heads=SMOLLM2, fast=fast) for n in (512, 2048) for fast in (True, False)),
]  # fmt: skip
CASES = MEASURED + [case for curve in CURVES.values() for case in curve if case not in MEASURED]


@dataclass
class Samples:
    system: str
    case: Case
    size: int
    seconds: list[float] = field(default_factory=list)
    limit_rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Bytes or operations per second, the median."""
        return (self.size if self.case.limit == "read" else self.case.operations) / statistics.median(self.seconds)

    @property
    def share(self) -> float:
        """Of the limit that was measured beside the samples."""
        return self.rate / statistics.median(self.limit_rates)


class Limits:
    """What the machine can do at this moment."""

    def __init__(self, threads: int) -> None:
        found = library()
        if found is None:
            raise SystemExit("the native kernels are not built (make native), and limits are measured by them")
        self._library, self._threads = found, threads
        self._reader = Reader(found, threads)

    def per_second(self, kind: str) -> float:
        if kind == "read":
            return self._reader.bytes_per_second()
        return operations_per_second(self._library, kind, self._threads) or float("nan")


def chosen(wanted: list[str]) -> list[Case]:
    """The cases of these kinds or curves, or with these texts in their labels, or with all that a + joins; all cases
    where nothing is wanted."""

    def fits(case: Case, text: str) -> bool:
        return case in CURVES[text] if text in CURVES else text == case.kind or text in case.label

    return [
        case
        for case in CASES
        if not wanted or any(all(fits(case, part) for part in text.split("+")) for text in wanted)
    ]


def measure(case: Case, workers: list[Worker], limits: Limits, rounds: int, seconds: float) -> list[Samples]:
    rows, calls = {}, {}
    for worker in workers:
        try:
            answer = worker.ask({"case": case.facts})
        except RuntimeError as error:
            raise SystemExit(str(error)) from None
        if answer["skip"]:
            continue
        rows[worker.name] = Samples(worker.name, case, answer["bytes"])
        first = statistics.median(worker.ask({"calls": 3})["seconds"])
        calls[worker.name] = max(3, min(2000, int(seconds / first)))
    for _ in range(rounds):
        for worker in workers:
            if worker.name not in rows:
                continue
            row = rows[worker.name]
            time.sleep(SETTLE_SECONDS)
            row.limit_rates.append(limits.per_second(case.limit))
            row.seconds.append(statistics.median(worker.ask({"calls": calls[worker.name]})["seconds"]))
    return list(rows.values())


def report(results: list[Samples]) -> str:
    lines = ["| work | system | us | rate | of the limit | ours / this |", "| --- | --- | --- | --- | --- | --- |"]
    for row in results:
        ours = next((r for r in results if r.case == row.case and r.system == OURS), row)
        unit = "GB/s" if row.case.limit == "read" else "GOPS"
        ratio = statistics.median(row.seconds) / statistics.median(ours.seconds)
        lines.append(
            f"| {row.case.kind}: {row.case.label} | {row.system} | {statistics.median(row.seconds) * 1e6:.0f} "
            f"({min(row.seconds) * 1e6:.0f}-{max(row.seconds) * 1e6:.0f}) | {row.rate / 1e9:.1f} {unit} "
            f"| {100 * row.share:.0f} % of {statistics.median(row.limit_rates) / 1e9:.0f} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="of calls in one sample")
    parser.add_argument(
        "--only",
        default="",
        help=f"matmul, decode, prefill, {', '.join(CURVES)} or a text of labels; + is and, a comma is or",
    )
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--lock", type=Path, help="a file to lock (flock) while a case is measured, shared while a system loads"
    )
    args = parser.parse_args()
    cases = chosen([text for text in args.only.split(",") if text])
    if not cases:
        parser.error(f"--only: no case is or has {args.only!r}")
    workers = []
    for name in args.systems.split(","):
        environment = SYSTEMS[name].environment
        if environment is not None and not install.installed(environment):
            print(f"{name}: not installed (make bench-peers)", file=sys.stderr)
            continue
        with held(args.lock, fcntl.LOCK_SH):
            workers.append(Worker(name, SYSTEMS[name], args.threads))
    limits, results = Limits(args.threads), []
    for number, case in enumerate(cases):
        print(f"{number + 1}/{len(cases)} {case.label}", end="\x1b[K\r", file=sys.stderr, flush=True)
        with held(args.lock, fcntl.LOCK_EX):
            results += measure(case, workers, limits, args.rounds, args.seconds)
    for worker in workers:
        worker.close()
    print(f"{host.cpu_name()}, {args.threads} threads; medians of {args.rounds} samples (least-most)\n")
    print(report(results))
    for worker in workers:
        print(f"\n- {worker.name}: {', '.join(worker.facts['versions'])}", end="")
    print()
    if args.json:
        rows = [asdict(row) | {"rate": row.rate, "share": row.share} for row in results]
        facts = {"cpu": host.cpu_name(), "threads": args.threads, "systems": {w.name: w.facts for w in workers}}
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
