"""Compiles the native kernels: every kernel once for each instruction-set level, and one shared library of all.

    python backends/cpu/native/build.py [--sanitize KIND] [--compiler g++] [--output FILE] [--optional]

Needs a C++20 compiler (g++ 11 or clang++ 12, or a later one) and nothing else. The build hook of the distribution calls
`build`; where that fails it leaves the reason in a file beside the library's place, for `opsocket doctor`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "opsocket_cpu" / "native" / "libopsocket_cpu.so"

_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni", "-mavx2", "-mfma",
           "-mf16c", "-mprefer-vector-width=512"]  # fmt: skip
LEVELS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "amx": [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
        "avx512_bf16": [*_AVX512, "-mavx512bf16"],
        "avx512_vnni": _AVX512,
        "avx_vnni": ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"],
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "portable": [],
    },
    # Four-lane vectors by the generic source; what it adds is what the compiler may use of the 8.2 instructions.
    "aarch64": {"neon": ["-march=armv8.2-a+dotprod+fp16"], "portable": []},
}
# Compiled once, for any processor of the architecture; all other sources are kernels.
COMMON = ("pool.cpp", "processor.cpp", "dispatch.cpp", "library.cpp", "pack.cpp", "repeat.cpp")
# Kernels of level amx: what its tiles multiply. All others there are avx512_vnni's (kernels.h).
# No other level has *_amx.cpp.
BY_TILES = ("level.cpp", "rate.cpp", "attention.cpp", "matmul_a8.cpp", "matmul_a16_amx.cpp")
SHARED_CACHE = "OPSOCKET_NATIVE_CACHE"
"""A directory for objects that several checkouts share: objects are named by what they were compiled from."""

border_of = runpy.run_path(str(OUTPUT.with_name("border.py")))["border_of"]

FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-pthread"),
    *("-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]


class BuildError(Exception):
    """The kernels can't be compiled: what the compiler said."""


class NoCompilerError(BuildError):
    """There is no compiler here."""


def reason_of(output: Path) -> Path:
    """The file beside a library's place that says why there is none; `opsocket doctor` reads it."""
    return output.with_suffix(".reason")


def leave_reason(error: BuildError, output: Path = OUTPUT) -> None:
    """No library, but why."""
    output.unlink(missing_ok=True)
    reason_of(output).write_text(f"not built: {error}\n")


def find_compiler() -> str:
    """$CXX, or the first of g++, clang++ and c++ on the path."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise NoCompilerError("no C++ compiler: neither $CXX nor g++, clang++ or c++ on the path")


def build(
    output: Path = OUTPUT,
    compiler: str | None = None,
    machine: str | None = None,
    extra: list[str] | None = None,
    cache: Path | None = None,
    jobs: int | None = None,
) -> bool:
    """Compile what has changed; whether anything had. BuildError carries what the compiler said."""
    compiler, machine, extra = compiler or find_compiler(), machine or platform.machine(), extra or []
    cache = Path(os.environ.get(SHARED_CACHE) or cache or HERE / ".objects")
    units = units_of(sorted((HERE / "src").glob("*.cpp")), compiler, machine, extra, cache)
    targets = [target for *_, target in units]
    stamp = output.with_suffix(".objects")
    wanted = "\n".join(target.name for target in targets)
    if output.exists() and stamp.exists() and stamp.read_text() == wanted:
        return False
    compile_units(units, compiler, jobs)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Linked elsewhere and moved into place: a process that has the old library mapped goes on with it.
    with tempfile.TemporaryDirectory(dir=output.parent) as directory:
        linked = Path(directory) / output.name
        _run([*compiler.split(), "-shared", "-pthread", *extra, "-o", str(linked), *map(str, targets)])
        os.replace(linked, output)
    stamp.write_text(wanted)
    if SHARED_CACHE not in os.environ:
        for old in set(cache.glob("*.o")) - set(targets):
            old.unlink()
    return True


Unit = tuple[Path, list[str], Path]
"""A source, the options that it is compiled with, and the object that comes of it."""


def units_of(sources: list[Path], compiler: str, machine: str, extra: list[str], cache: Path) -> list[Unit]:
    """Every source once for each level, those of COMMON once; objects are named by their source, level and content."""
    if machine not in LEVELS:
        raise BuildError(f"no instruction-set levels are known for the architecture {machine}")
    version = _run([*compiler.split(), "--version"])
    units = []
    border = f"-DOPSOCKET_BORDER={border_of(HERE / 'src')}"
    for source in sources:
        levels = {"": []} if source.name in COMMON else LEVELS[machine]
        for level, flags in levels.items():
            if level == "amx" and source.parent.name == "src" and source.name not in BY_TILES:
                continue
            if level != "amx" and source.stem.endswith("_amx"):
                continue
            options = [*FLAGS, *flags, *extra, *([f"-DOPSOCKET_LEVEL={level}"] if level else [])]
            if source.name == "library.cpp":
                options.append(border)
            text = b"".join(path.read_bytes() for path in _with_headers(source)) + repr((version, options)).encode()
            name = f"{source.stem}-{level or 'any'}-{hashlib.sha256(text).hexdigest()[:20]}.o"
            units.append((source, options, cache / name))
    return units


def compile_units(units: list[Unit], compiler: str, jobs: int | None = None) -> None:
    """Those whose object is not there yet, several at a time."""
    for directory in {target.parent for *_, target in units}:
        directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda unit: _compile(compiler, *unit), units))


def _with_headers(source: Path) -> list[Path]:
    """A source and all of this project's headers that it includes, directly or not."""
    found, open_ = [source], [source]
    while open_:
        for name in re.findall(r'^#include "(.+)"$', open_.pop().read_text(), re.MULTILINE):
            path = next(p for p in (source.parent / name, HERE / "src" / name) if p.exists())
            if path not in found:
                found.append(path)
                open_.append(path)
    return sorted(found)


def _compile(compiler: str, source: Path, options: list[str], target: Path) -> None:
    if target.exists():
        return
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    _run([*compiler.split(), *options, "-c", str(source), "-o", str(partial)])
    os.replace(partial, target)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:1])} failed with {done.returncode}:\n{done.stderr.strip()[-4000:]}")
    if done.stderr.strip():
        print(done.stderr, file=sys.stderr)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sanitize", choices=("address", "thread", "undefined"))
    parser.add_argument("--compiler")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--optional", action="store_true", help="no compiler is no error; the reason is left")
    args = parser.parse_args()
    extra, cache = [], HERE / ".objects"
    if args.sanitize:
        extra, cache = [f"-fsanitize={args.sanitize}", "-g", "-fno-omit-frame-pointer"], cache / args.sanitize
    try:
        changed = build(args.output, args.compiler, extra=extra, cache=cache)
    except NoCompilerError as error:
        if not args.optional:
            sys.exit(f"error: {error}")
        leave_reason(error, args.output)
        print(f"native kernels are left out: {error}", file=sys.stderr)
        return
    except BuildError as error:
        sys.exit(f"error: {error}")
    reason_of(args.output).unlink(missing_ok=True)
    print(f"{args.output}: {'built' if changed else 'up to date'}")


if __name__ == "__main__":
    main()
