"""Kernels that were launched, compiled ahead of time for architectures that are absent.

    OPSOCKET_RECORD_LAUNCHES=FOLDER OPSOCKET_INTERPRET=sm_90 opsocket conformance --backend cuda --filter 'add['
    python -m opsocket_triton.compile FOLDER --arch sm_90,gfx942

Compilers run in processes of their own, which do not interpret: one that crashes or hangs is a problem of the kernel
that it was given. What a binary shows is kept in the user's cache folder, by the kernel's source and that of the
functions it calls, its specialization, the architecture, and the versions of Triton and of these modules.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from opsocket.operators import ContractError
from opsocket.runtime.files import cache_folder
from opsocket_triton.arches import ARCHES, Arch, find_arch
from opsocket_triton.artifact import ACCEPTED_NAME, Artifact, Measured, judged, occupancy
from opsocket_triton.specialization import Specialization

_LIMIT_S: Final = 600.0
"""That one kernel may take."""
_OURS: Final = ("artifact.py", "binary.py", "compile.py")

Job = tuple[Specialization, Arch]


def compile_all(
    work: Sequence[Job],
    *,
    jobs: int = 1,
    cached: bool = True,
    assembly: Path | None = None,
    on_artifact: Callable[[Artifact], None] = lambda artifact: None,
) -> list[Artifact]:
    """The artifact of each specialization for its architecture, in order. jobs: compilers at the same time. assembly: a
    folder that gets the text of each. Whatever goes wrong is a problem of its artifact."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(work)):
        waiting.put(index)
    made: dict[int, Artifact] = {}
    failures: list[BaseException] = []
    lock = threading.Lock()

    def serve() -> None:
        compiler = _Compiler(cached, assembly)
        try:
            while True:
                index = waiting.get_nowait()
                artifact = compiler.make(*work[index])
                with lock:
                    made[index] = artifact
                    on_artifact(artifact)
        except queue.Empty:
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            compiler.close()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(max(1, min(jobs, len(work))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [made[index] for index in range(len(work))]


class _Compiler:
    """A process that compiles what it is told, made when it is needed and again when it died."""

    def __init__(self, cached: bool, assembly: Path | None) -> None:
        self._arguments = ([] if cached else ["--no-cache"]) + (["--assembly", str(assembly)] if assembly else [])
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)

    def make(self, specialization: Specialization, arch: Arch) -> Artifact:
        started = time.perf_counter()
        process = self._process or self._start()
        try:
            content = self._ask(process, {"arch": arch.name, "specialization": specialization.dumps()})
        except (OSError, EOFError, TimeoutError) as error:
            problem = f"compiler: {error or type(error).__name__}{self._last_words()}"
            self._end()
            return Artifact(
                specialization.kernel,
                str(specialization),
                arch.name,
                Measured(),
                arch.shared_bytes,
                0.0,
                round(time.perf_counter() - started, 3),
                (problem,),
            )
        return artifact_from_json(content)

    def close(self) -> None:
        self._end()
        self._said.close()

    def _start(self) -> subprocess.Popen[bytes]:
        # A kernel is made by triton.jit for one mode or the other, when its module is imported.
        quiet = {"TRITON_DEFAULT_FP_FUSION": os.environ.get("TRITON_DEFAULT_FP_FUSION", "1")}
        left_out = ("TRITON_INTERPRET", "OPSOCKET_INTERPRET", "OPSOCKET_RECORD_LAUNCHES")
        environment = {name: value for name, value in os.environ.items() if name not in left_out} | quiet
        self._process = subprocess.Popen(
            [sys.executable, "-m", "opsocket_triton.compile", "--serve", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
        )
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        heard, deadline = b"", time.monotonic() + _LIMIT_S
        while not heard.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"longer than {_LIMIT_S:g} s")
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                raise EOFError(f"its process ended with exit code {process.wait()}")
            heard += read
        answer: dict[str, Any] = json.loads(heard)
        return answer

    def _last_words(self) -> str:
        self._said.seek(0)
        text = self._said.read().decode(errors="replace").strip()
        return f"\n{text[-2000:]}" if text else ""

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# ---- in the compiler's own process


def make(specialization: Specialization, arch: Arch, cached: bool = True, assembly: Path | None = None) -> Artifact:
    """Compile one kernel here, or take what the cache has of it."""
    try:
        module = importlib.import_module(specialization.kernel.partition(":")[0])
        function = getattr(module, specialization.kernel.partition(":")[2])
        measured, seconds = _measured(function, specialization, arch, cached and assembly is None, assembly)
        wrong, accepted = judged(arch, specialization, measured, getattr(module, ACCEPTED_NAME, {}))
    except Exception as error:
        measured, seconds, wrong, accepted = Measured(), 0.0, (f"compiler: {_told(error)}",), ()
    return Artifact(
        specialization.kernel,
        str(specialization),
        arch.name,
        measured,
        arch.shared_bytes,
        round(occupancy(arch, measured, specialization.warps), 3) if measured.registers else 0.0,
        seconds,
        wrong,
        accepted,
    )


def _told(error: BaseException) -> str:
    """What a compiler said; of Triton's own errors, which quote the kernel down to a place, that and what is wrong."""
    said, cause = str(error), error.__cause__
    first, last = said.strip().partition("\n")[0], said.strip().rpartition("\n")[2].strip()
    if cause is not None and str(cause):
        last = str(cause)
    return f"{type(error).__name__}: {first} {last}" if first != last else f"{type(error).__name__}: {first}"


def _measured(
    function: Any, specialization: Specialization, arch: Arch, cached: bool, assembly: Path | None
) -> tuple[Measured, float]:
    file = cache_folder() / "compiled" / f"{_key(function, specialization, arch)}.json"
    if cached and file.is_file():
        try:
            content = json.loads(file.read_text())
            return _measured_from_json(content["measured"]), content["seconds"]
        except (ValueError, KeyError, TypeError):
            pass  # written by half: made anew
    started = time.perf_counter()
    measured = _compile(function, specialization, arch, assembly)
    seconds = round(time.perf_counter() - started, 3)
    if cached:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps({"measured": asdict(measured), "seconds": seconds}))
        os.replace(partial, file)
    return measured, seconds


def _key(function: Any, specialization: Specialization, arch: Arch) -> str:
    import triton

    digest = hashlib.sha256()
    for text in (triton.__version__, function.cache_key, specialization.dumps(), arch.name):
        digest.update(text.encode() + b"\0")
    for name in _OURS:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _compile(function: Any, specialization: Specialization, arch: Arch, assembly: Path | None) -> Measured:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from opsocket_triton.binary import measure

    signature = dict(specialization.signature)
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, name in enumerate(function.arg_names):
        facts = [["tt.divisibility", 16]] if name in specialization.aligned else []
        if arch.backend == "hip" and name in specialization.near:
            facts.append(["tt.pointer_range", 32])
        if facts:
            attributes[(index,)] = facts
    source = ASTSource(function, signature, dict(specialization.constants), attributes)
    options = {"num_warps": specialization.warps, "num_stages": specialization.stages}
    compiled = triton.compile(source, target=GPUTarget(*arch.target), options=options)
    if assembly is not None:
        assembly.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(specialization.dumps().encode()).hexdigest()[:8]
        for kind in ("ttgir", "ptx", "amdgcn"):
            if kind in compiled.asm:
                name = f"{specialization.kernel.partition(':')[2]}-{digest}-{arch.name}.{kind}"
                assembly.joinpath(name).write_text(f"// {specialization}\n{compiled.asm[kind]}")
    return measure(compiled, arch.backend)


def artifact_from_json(content: dict[str, Any]) -> Artifact:
    texts = {name: tuple(content[name]) for name in ("problems", "accepted")}
    return Artifact(**{**content, **texts, "measured": _measured_from_json(content["measured"])})


def _measured_from_json(content: dict[str, Any]) -> Measured:
    return Measured(**{**content, "matrix": tuple(content["matrix"]), "dots": tuple(content["dots"])})


def _serve(cached: bool, assembly: Path | None) -> None:
    """One line of JSON each way, until the requests end. What compilers print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="opsocket-triton-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for line in sys.stdin:
            request = json.loads(line)
            specialization = Specialization.loads(request["specialization"])
            artifact = make(specialization, find_arch(request["arch"]), cached, assembly)
            answers.write(json.dumps(asdict(artifact)) + "\n")
            answers.flush()


# ---- the command


def read_records(path: Path) -> list[Specialization]:
    """The different launches in a folder of records, or in one file of them, ordered by kernel."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    lines = {line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line}
    return sorted(map(Specialization.loads, lines), key=lambda each: (each.kernel, str(each)))


_COLUMNS: Final = (
    "kernel", "arch", "variants", "registers", "spills", "local", "shared KiB", "of", "occupancy", "matrix", "seconds",
)  # fmt: skip


def rows(artifacts: Sequence[Artifact], each: bool = False) -> Iterator[tuple[str, ...]]:
    """A row for every kernel and architecture, with ranges over its variants; or one for every variant."""
    groups: dict[tuple[str, str], list[Artifact]] = {}
    for artifact in artifacts:
        name = artifact.variant if each else artifact.kernel.partition(":")[2]
        groups.setdefault((name, artifact.arch), []).append(artifact)
    for (name, arch), mine in groups.items():
        shown = [artifact.measured for artifact in mine]
        matrix = sorted({instruction for measured in shown for instruction in measured.matrix})
        yield (
            name,
            arch,
            str(len(mine)),
            _range(measured.registers for measured in shown),
            _range(measured.spills for measured in shown),
            _range(measured.local_bytes for measured in shown),
            _range(measured.shared_bytes / 1024 for measured in shown),
            f"{mine[0].shared_limit / 1024:g}",
            _range(artifact.occupancy for artifact in mine),
            ", ".join(matrix[:3]) + (f" and {len(matrix) - 3} more" if len(matrix) > 3 else ""),
            f"{sum(artifact.seconds for artifact in mine):.1f}",
        )


def _range(values: Iterable[float]) -> str:
    found = sorted(set(values))
    low, high = f"{found[0]:.3g}", f"{found[-1]:.3g}"
    return low if low == high else f"{low}-{high}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where a problem was found."""
    parser = argparse.ArgumentParser(prog="python -m opsocket_triton.compile", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "records", metavar="FOLDER", type=Path, nargs="?", help="of $OPSOCKET_RECORD_LAUNCHES, or a file"
    )
    parser.add_argument("--arch", default=",".join(ARCHES), metavar="A,B", help="default: all nine")
    parser.add_argument("--kernel", default="", metavar="TEXT", help="only kernels whose variant contains TEXT")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each, instead of the table")
    parser.add_argument("--each", action="store_true", help="a row for each variant")
    parser.add_argument("--assembly", type=Path, metavar="FOLDER", help="write the text of each there (compiles anew)")
    parser.add_argument("--no-cache", action="store_true", help="compile anew what the cache has")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.serve:
        _serve(not asked.no_cache, asked.assembly)
        return 0
    if asked.records is None or not asked.records.exists():
        parser.error("a folder of records is wanted, which $OPSOCKET_RECORD_LAUNCHES names when kernels are launched")
    try:
        arches = [find_arch(name) for name in asked.arch.split(",")]
    except ContractError as error:
        parser.error(str(error))
    found = [each for each in read_records(asked.records) if asked.kernel in str(each)]
    started, count = time.perf_counter(), len(found) * len(arches)
    done: list[Artifact] = []

    def tell(artifact: Artifact) -> None:
        done.append(artifact)
        if asked.json:
            print(json.dumps(asdict(artifact)), flush=True)
        elif artifact.problems:
            print(f"{artifact.arch}: {artifact.variant}: {'; '.join(artifact.problems)}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{len(done)} of {count}", end="", file=sys.stderr, flush=True)

    artifacts = compile_all(
        [(each, arch) for each in found for arch in arches],
        jobs=asked.jobs,
        cached=not asked.no_cache,
        assembly=asked.assembly,
        on_artifact=tell,
    )
    wrong = [artifact for artifact in artifacts if artifact.problems]
    if not asked.json:
        _print_table([_COLUMNS, *rows(artifacts, asked.each)])
        for artifact in artifacts:
            for text in artifact.accepted:
                print(f"accepted: {artifact.arch}: {artifact.variant}: {text}")
        took = time.perf_counter() - started
        print(f"{len(found)} variants for {len(arches)} architectures: {len(wrong)} with problems; {took:.1f} s")
    return 1 if wrong or not artifacts else 0


def _print_table(table: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        cells = (
            cell.rjust(width) if 1 < i < 9 or i == 10 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
