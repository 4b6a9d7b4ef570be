"""Whole-model speed beside named peers: the same file, the same prompts, the same machine, in turn (A B A B ...).

    make bench-peers                                      # once: the peers, each in an environment of its own
    .venv/bin/python benchmarks/whole_model.py [--threads 2] [--repeats 5] [--systems opsocket,llama.cpp] [--json FILE]

Each system is a process of its own (`peers/`), loaded once. Between samples memory is read raw, which is the limit of
whatever streams its weights; "of a raw read" is the time in which the weights and the cache of a step could be read so,
over what the step took. "opsocket" computes in f32 with exact numerics, "opsocket bf16" in bf16 as the peers do,
"opsocket w4a16" so without quantized activations.
All are greedy; how many first tokens equal those of transformers in f32, which computes with the file's dequantized
weights, is printed, since a fast wrong answer is no result. A sample during which other processes took more than 5 % of
the machine is dropped and taken again, three times at most.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import install  # noqa: E402
from worker import System, Worker, busy_elsewhere, held  # noqa: E402

from opsocket_cpu.native.library import library  # noqa: E402
from opsocket_cpu.native.limits import Reader  # noqa: E402

TEXT = Path("/usr/share/common-licenses/GPL-3")
"""What prompts are cut from, at random places: real text, so that the most probable token stands out. Debian's
base-files has it; where it lacks, this project's own documentation serves."""


OURS = "opsocket"
REFERENCE = "transformers f32"
SYSTEMS: dict[str, System] = {
    OURS: System("opsocket_worker.py", None, ("--activations", "i8_g32", "--dtype", "f32", "--kv-format", "bf16")),
    "opsocket bf16": System(
        "opsocket_worker.py",
        None,
        ("--activations", "i8_g32", "--dtype", "bf16", "--kv-format", "bf16", "--numerics", "fast"),
    ),
    "opsocket w4a16": System(
        "opsocket_worker.py",
        None,
        ("--activations", "none", "--dtype", "bf16", "--kv-format", "bf16", "--numerics", "fast"),
    ),
    "opsocket f32": System(
        "opsocket_worker.py", None, ("--activations", "none", "--dtype", "f32", "--kv-format", "f32")
    ),
    "llama.cpp": System("llama_cpp_worker.py", "llama_cpp"),
    "llama.cpp q4_0": System("llama_cpp_worker.py", "llama_cpp", ("--q4_0",)),
    "openvino": System("openvino_worker.py", "openvino"),
    "onnxruntime genai": System("onnxruntime_genai_worker.py", "onnxruntime_genai"),
    "vllm": System("vllm_worker.py", "vllm"),
    "transformers bf16": System("transformers_worker.py", None, ("--dtype", "bfloat16")),
    REFERENCE: System("transformers_worker.py", None, ("--dtype", "float32")),
}


@dataclass(frozen=True)
class Case:
    """`batch` prompts of `prompt` tokens, then `decode` steps."""

    prompt: int
    batch: int
    decode: int

    @property
    def label(self) -> str:
        return f"{self.batch} x {self.prompt}"

    @property
    def tokens(self) -> int:
        """Of all sequences, in the end."""
        return self.batch * (self.prompt + self.decode + 1)


CASES = (
    Case(1, 1, 32),
    Case(128, 1, 16),
    Case(512, 1, 16),
    Case(1024, 1, 16),
    Case(2048, 1, 16),
    Case(4096, 1, 16),
    *(Case(1, batch, 32) for batch in (2, 4, 8, 16)),
    Case(1024, 8, 16),
)
SETTLE_SECONDS = 0.3
"""Threads of OpenMP spin for up to 0.2 s after their last work, and memory is read raw, and the next system run, beside
them."""
LEAST_CONTEXT = 2048
"""Tokens that a system is given room for where no case needs more."""


@dataclass
class Samples:
    """One system's runs of one case: tokens per second, and the raw read beside each run in bytes per second."""

    system: str
    case: Case
    prompt_rates: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)
    read_rates: list[float] = field(default_factory=list)
    equal: list[float] = field(default_factory=list)
    disturbed: int = 0
    step_bytes: int = 0
    token_bytes: int = 0

    @property
    def of_read(self) -> float | None:
        """What its bytes would take at the rate of the raw read beside each run, over what decoding took; None where
        the system does not say what it reads."""
        if not self.step_bytes:
            return None
        case = self.case
        step = self.step_bytes + case.batch * self.token_bytes * (case.prompt + case.decode / 2)
        steps = (rate / case.batch for rate in self.decode_rates)
        return statistics.median(step * rate / read for rate, read in zip(steps, self.read_rates, strict=True))


def text_tokens(files: Any) -> np.ndarray:
    from opsocket_engine.tokenizer import load_tokenizer

    paths = [TEXT] if TEXT.exists() else sorted((HERE.parent / "docs").glob("*.md"))
    return np.array(load_tokenizer(files).encode("\n".join(path.read_text() for path in paths)))


def measure(
    workers: list[Worker], reader: Reader, text: np.ndarray, cases: list[Case], repeats: int, lock: Path | None
) -> list[Samples]:
    """A peer that ends is left out from there on; what was measured stays."""
    generator = np.random.default_rng(0)
    results = []
    for case in cases:
        rows = {w.name: Samples(w.name, case, **_bytes_read(w)) for w in workers}
        for repeat in range(repeats + 1):
            starts = generator.integers(0, len(text), case.batch)
            prompts = [np.take(text, range(at, at + case.prompt), mode="wrap").tolist() for at in starts]
            tokens: dict[str, list[list[int]]] = {}
            with held(lock, fcntl.LOCK_EX):
                for worker in list(workers):
                    try:
                        read, answer, quiet = sample(worker, reader, prompts, case.decode)
                    except RuntimeError as error:
                        print(f"{case.label}: {error}; without it from here on", file=sys.stderr)
                        workers.remove(worker)
                        rows.pop(worker.name)
                        continue
                    tokens[worker.name] = answer["tokens"]
                    if repeat == 0:
                        continue
                    row = rows[worker.name]
                    row.prompt_rates.append(case.batch * case.prompt / answer["prompt_seconds"])
                    row.decode_rates.append(case.batch * case.decode / answer["decode_seconds"])
                    row.read_rates.append(read)
                    row.disturbed += not quiet
            if REFERENCE in tokens:
                for name, mine in tokens.items():
                    rows[name].equal.append(_agreement(mine, tokens[REFERENCE]))
            print(f"{case.label}: {repeat}/{repeats}", end="\r", file=sys.stderr, flush=True)
        results += rows.values()
    return results


def sample(worker: Worker, reader: Reader, prompts: list[list[int]], decode: int) -> tuple[float, dict[str, Any], bool]:
    """One run beside a raw read; taken again where other work disturbed it."""
    for _ in range(3):
        time.sleep(SETTLE_SECONDS)
        others = busy_elsewhere(worker)
        start = time.perf_counter()
        read = reader.bytes_per_second()
        answer = worker.ask({"prompts": prompts, "decode": decode})
        seconds = time.perf_counter() - start
        if quiet := busy_elsewhere(worker) - others < 0.05 * seconds * (os.cpu_count() or 1):
            break
    return read, answer, quiet


def _bytes_read(worker: Worker) -> dict[str, int]:
    return {name: worker.facts[name] for name in ("step_bytes", "token_bytes") if name in worker.facts}


def _agreement(mine: list[list[int]], reference: list[list[int]]) -> float:
    """The share of tokens before the first that differs, over all sequences."""
    same = 0
    for a, b in zip(mine, reference, strict=True):
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(b))
    return same / sum(map(len, reference))


def room(cases: list[Case]) -> list[str]:
    """What a worker is told of the largest case, on its command line."""
    context = max(LEAST_CONTEXT, *(case.tokens for case in cases))
    return ["--context", str(context), "--batch", str(max(case.batch for case in cases))]


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")


COLUMNS = ("sequences x prompt", "system", "prompt tokens/s", "decode tokens/s", "prompt, ours / this",
           "decode, ours / this", "decode, of a raw read", "first tokens equal")  # fmt: skip


def report(results: list[Samples], facts: dict[str, Any]) -> str:
    lines = [
        f"{platform.machine()}, {facts['cpu']}, {facts['threads']} threads; {facts['model']}; medians (least-most) of "
        f"{facts['repeats']} runs in turn",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    for row in results:
        ours = next((r for r in results if r.case == row.case and r.system == OURS), row)
        lines.append(
            f"| {row.case.label} | {row.system} | {_spread(row.prompt_rates)} | {_spread(row.decode_rates)} "
            f"| {median(ours.prompt_rates) / median(row.prompt_rates):.2f} "
            f"| {median(ours.decode_rates) / median(row.decode_rates):.2f} "
            f"| {f'{100 * row.of_read:.0f} %' if row.of_read else ''} "
            f"| {f'{100 * statistics.mean(row.equal):.0f} %' if row.equal else ''} |"
        )
    return "\n".join(lines)


def kept(paths: list[Path]) -> str:
    """The report of runs on one machine that were kept with --json."""
    runs = [json.loads(path.read_text()) for path in paths]
    rows = [Samples(**{**row, "case": Case(**row["case"])}) for run in runs for row in run["rows"]]
    return report(rows, runs[0])


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--systems", help=f"of {', '.join(SYSTEMS)}, separated by commas; default: all that are installed"
    )
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of one; default: %(default)s")
    parser.add_argument("--cases", help="as BATCHxPROMPT, separated by commas; default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--lock", type=Path, help="a file to lock (flock) during each round of samples, shared while a system loads"
    )
    args = parser.parse_args()

    from opsocket_cpu import host
    from opsocket_engine.locate import GGUFModel, locate

    files = locate(args.model)
    if not isinstance(files, GGUFModel):
        parser.error(f"--model: a GGUF file, or a name of one, not {args.model}")
    names = args.systems.split(",") if args.systems else list(SYSTEMS)
    cases = [c for c in CASES if not args.cases or f"{c.batch}x{c.prompt}" in args.cases.split(",")]
    if not cases:
        parser.error(f"--cases: none of {', '.join(f'{c.batch}x{c.prompt}' for c in CASES)}")
    given = [str(files.path), *room(cases)]
    workers = []
    for name in names:
        environment = SYSTEMS[name].environment
        if environment is not None and not install.installed(environment):
            print(f"{name}: not installed (make bench-peers)", file=sys.stderr)
            continue
        with held(args.lock, fcntl.LOCK_SH):
            workers.append(Worker(name, SYSTEMS[name], args.threads, given))
    native = library()
    if native is None:
        raise SystemExit("the native kernels are not built (make native), and memory is read raw by them")
    reader = Reader(native, args.threads)
    facts: dict[str, Any] = {
        "cpu": host.cpu_name(), "threads": args.threads, "model": files.path.name, "repeats": args.repeats,
        "systems": {w.name: w.facts for w in workers},
    }  # fmt: skip
    results = measure(workers, reader, text_tokens(files), cases, args.repeats, args.lock)
    for worker in workers:
        worker.close()
    print(report(results, facts))
    for worker in workers:
        print(f"\n- {worker.name}: {worker.facts['ready']}; {', '.join(worker.facts['versions'])}", end="")
    print()
    if args.json:
        args.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in results]}, indent=1))


if __name__ == "__main__":
    main()
