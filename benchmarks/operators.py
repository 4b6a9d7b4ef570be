"""Single operators beside named peers and beside the machine's limits, measured in the same run, in turn (A B A B ...).

    .venv/bin/python benchmarks/operators.py [--backend cuda] [--only matmul,decode] [--systems ...] [--json FILE]

Work that streams memory (matmul of few rows, decode attention) is judged against a raw read of memory between the
samples, work that computes (matmul of many rows, prefill) against the rate of the instructions themselves, or on a GPU
of the vendor's product. Weights and caches are rotated: together they are larger than any cache. The peers are
processes (`peers/operators_*.py`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import install  # noqa: E402
from cases import CPU, CURVES, GPU, Case, chosen  # noqa: E402
from worker import System, Worker, held  # noqa: E402

import opsocket  # noqa: E402
from opsocket.operators import Session  # noqa: E402
from opsocket_cpu import host  # noqa: E402
from opsocket_cpu.native.library import library  # noqa: E402
from opsocket_cpu.native.limits import Reader, operations_per_second  # noqa: E402

OURS = "opsocket"
SETTLE_SECONDS = 0.05
"""Before each sample: threads of the system before it may spin for a while after its last call."""
FRESH_SECONDS = 30.0
"""For which a chip's limits are taken for true."""
SYSTEMS = {
    OURS: System("operators_opsocket.py", None),
    "torch": System("operators_torch.py", None),
    "onnxruntime": System("operators_onnxruntime.py", None),
    "openvino": System("operators_openvino.py", "openvino"),
    "ggml": System("operators_ggml.py", "llama_cpp"),
    "vllm": System("operators_vllm.py", "vllm"),
}
GPU_SYSTEMS = {
    OURS: System("operators_opsocket.py", None),
    "opsocket triton": System("operators_opsocket.py", None, ("--provider", "triton")),
    "torch": System("operators_torch.py", None),
    "flashinfer": System("operators_flashinfer.py", None),
}
"""Ours as it chooses by itself, and its own kernels where it would choose a vendor's."""


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


class HostLimits:
    """What the processor and its memory can do at this moment."""

    def __init__(self, threads: int) -> None:
        found = library()
        if found is None:
            raise SystemExit("the native kernels are not built (make native), and limits are measured by them")
        self._library, self._threads = found, threads
        self._reader = Reader(found, threads)

    def per_second(self, kind: str) -> float:
        if kind == "read":
            return self._reader.bytes_per_second()
        rate = operations_per_second(self._library, kind, self._threads)
        if rate is None:
            raise ValueError(f"level {self._library.level} computes nothing in {kind}")
        return rate

    def deciding(self, case: Case) -> Case:
        """What multiplies bf16 as f32 is limited by the rate of f32."""
        if case.limit == "bf16" and operations_per_second(self._library, "bf16", 1) is None:
            return replace(case, limit="f32")
        return case


class DeviceLimits:
    """What a chip can do, measured anew from time to time: it slows down as it gets warm."""

    def __init__(self, session: Session) -> None:
        self._session, self._rates, self._until = session, {}, 0.0

    def deciding(self, case: Case) -> Case:
        return case

    def per_second(self, kind: str) -> float:
        if time.monotonic() > self._until:
            self._rates = {limit.name: limit.per_second for limit in self._session.limits()}
            self._until = time.monotonic() + FRESH_SECONDS
        return self._rates[kind]


def measure(
    case: Case, workers: list[Worker], limits: HostLimits | DeviceLimits, rounds: int, seconds: float
) -> list[Samples]:
    """Takes a peer that ends out of `workers`: what was measured until then, and the others, go on."""
    rows, calls = {}, {}
    case = limits.deciding(case)

    def ask(worker: Worker, job: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return worker.ask(job)
        except RuntimeError as error:
            if worker.name == OURS:
                raise SystemExit(str(error)) from None
            print(f"{case.label}: {error}; without it from here on", file=sys.stderr)
            workers.remove(worker)
            rows.pop(worker.name, None)
            return None

    for worker in list(workers):
        answer = ask(worker, {"case": case.facts})
        if answer is None or answer["skip"]:
            continue
        if (first := ask(worker, {"calls": 3})) is None:
            continue
        rows[worker.name] = Samples(worker.name, case, answer["bytes"])
        calls[worker.name] = max(3, min(2000, int(seconds / statistics.median(first["seconds"]))))
    for _ in range(rounds):
        for worker in list(workers):
            if (row := rows.get(worker.name)) is None:
                continue
            time.sleep(SETTLE_SECONDS)
            limit = limits.per_second(case.limit)
            if (answer := ask(worker, {"calls": calls[worker.name]})) is not None:
                row.limit_rates.append(limit)
                row.seconds.append(statistics.median(answer["seconds"]))
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


def place(backend: str, threads: int) -> tuple[HostLimits | DeviceLimits, str, dict[str, System], list[Case]]:
    """For a backend: its device's limits and name, who can be measured there, and the work."""
    if backend == "cpu":
        return HostLimits(threads), f"{host.cpu_name()}, {threads} threads", SYSTEMS, CPU
    session = opsocket.open(backend)
    if not session.limits():
        raise SystemExit(f"{session.device}: no speed can be measured on it (numerics: {session.device.numerics})")
    return DeviceLimits(session), f"{session.device.name} ({session.device.arch})", GPU_SYSTEMS, GPU


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="cpu", help="cpu, cuda, rocm:1, ...")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the host")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="of calls in one sample")
    parser.add_argument(
        "--only",
        default="",
        help=f"matmul, decode, prefill, {', '.join(CURVES)} or a text of labels; + is and, a comma is or",
    )
    parser.add_argument("--systems", help="default: all; those that can't run are named")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--lock", type=Path, help="a file to lock (flock) while a case is measured, shared while a system loads"
    )
    args = parser.parse_args()
    limits, machine, systems, all_cases = place(args.backend, args.threads)
    cases = chosen(all_cases, [text for text in args.only.split(",") if text])
    if not cases:
        parser.error(f"--only: no case is or has {args.only!r}")
    workers = []
    for name in args.systems.split(",") if args.systems else systems:
        if name not in systems:
            parser.error(f"--systems: {name!r} is none of {', '.join(systems)}")
        environment = systems[name].environment
        if environment is not None and not install.installed(environment):
            print(f"{name}: not installed (make bench-peers)", file=sys.stderr)
            continue
        with held(args.lock, fcntl.LOCK_SH):
            try:
                workers.append(Worker(name, systems[name], args.threads, ("--backend", args.backend)))
            except RuntimeError as error:
                if name == OURS:
                    raise
                print(f"{name}: not measured: {error}", file=sys.stderr)
    results = []
    for number, case in enumerate(cases):
        print(f"{number + 1}/{len(cases)} {case.label}", end="\x1b[K\r", file=sys.stderr, flush=True)
        with held(args.lock, fcntl.LOCK_EX):
            results += measure(case, workers, limits, args.rounds, args.seconds)
    for worker in workers:
        worker.close()
    print(f"{machine}; medians of {args.rounds} samples (least-most)\n")
    print(report(results))
    for worker in workers:
        print(f"\n- {worker.name}: {', '.join(worker.facts['versions'])}", end="")
    print()
    if args.json:
        rows = [asdict(row) | {"rate": row.rate, "share": row.share} for row in results]
        facts = {"cpu": host.cpu_name(), "threads": args.threads, "systems": {w.name: w.facts for w in workers}}
        if args.backend != "cpu":
            facts["device"] = machine
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
