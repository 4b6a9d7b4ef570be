"""Builds and runs the native tests (`tests/test_*.cpp`) at every level of this processor, plain or under sanitizers.

    python backends/cpu/native/check.py [--sanitize address undefined thread] [--machine aarch64] [--emulate-bf16]
                                        [test_name ...]

A test is compiled once for each of these levels, and linked with all kernels. On another architecture's `--machine`
its cross compiler and user-mode emulator run them, or this says which one is missing and ends well. A processor that
has all of level avx512_bf16 but AVX512_BF16 itself tests that level alone with its three instructions emulated.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build import HERE, LEVELS, OUTPUT, SHARED_CACHE, BuildError, Unit, compile_units, find_compiler, units_of

NOT_HERE = 77
"""What a test ends with where the processor lacks its level."""

_FIRST_REPORT_ENDS = {"ASAN_OPTIONS": "abort_on_error=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
                      "TSAN_OPTIONS": "halt_on_error=1"}  # fmt: skip


_EMULATED = "avx512_bf16"


def check(
    names: list[str],
    compiler: str,
    machine: str,
    emulator: list[str],
    sanitizer: str | None,
    emulate_bf16: bool,
    verbose: bool,
) -> int:
    """How many tests failed, over all levels."""
    extra = _sanitized(sanitizer, compiler) if sanitizer else []
    shared, own = os.environ.get(SHARED_CACHE), HERE / ".objects"
    cache = Path(shared or own / "check")
    sources = [path for path in sorted((HERE / "tests").glob("test_*.cpp")) if not names or path.stem in names]
    if unknown := set(names) - {path.stem for path in sources}:
        sys.exit(f"error: no such test: {', '.join(sorted(unknown))}")
    built = cache if shared or extra or machine != platform.machine() else own  # those that the library is made of
    kernels = units_of(sorted((HERE / "src").glob("*.cpp")), compiler, machine, extra, built)
    tests = units_of(sources, compiler, machine, [*extra, f"-I{HERE / 'src'}"], cache)
    if emulate_bf16:
        kernels = [(s, o, cache / t.name) if _level((s, o, t)) == _EMULATED else (s, o, t) for s, o, t in kernels]
        tests = [test for test in tests if _level(test) == _EMULATED]
    absent = _absent_levels() - ({_EMULATED} if emulate_bf16 else set()) if machine == platform.machine() else set()
    if extra:  # what can't run here is as the library has it: sanitized kernels take the compiler long
        as_built = units_of(sorted((HERE / "src").glob("*.cpp")), compiler, machine, [], Path(shared or own))
        kernels = [b if _level(b) in absent else k for b, k in zip(as_built, kernels, strict=True)]
    for level in sorted(absent & {_level(test) for test in tests}):
        print(f"{machine} {level}: not on this processor")
    tests = [test for test in tests if _level(test) not in absent]
    compile_units([*kernels, *tests], compiler)
    environment = os.environ | _FIRST_REPORT_ENDS | ({"OPSOCKET_EMULATED": "1"} if emulator else {})
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for unit in tests:
            level, (source, _, target) = _level(unit), unit
            program = Path(directory) / f"{source.stem}-{level}"
            linked = [str(target), *(str(t) for *_, t in kernels)]
            static = ["-static"] if emulator else []
            command = [*compiler.split(), "-pthread", *static, *extra, "-o", str(program), *linked]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise BuildError(done.stderr[-4000:])
            done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, env=environment)
            verdict = {0: "ok", NOT_HERE: "not on this processor"}.get(done.returncode, f"FAILED ({done.returncode})")
            how = f"{sanitizer or 'plain'}{' emulated' if emulate_bf16 else ''}"
            print(f"{machine} {how} {level} {source.stem}: {verdict}", flush=True)
            if verdict.startswith("FAILED"):
                failed += 1
            if verdict.startswith("FAILED") or verbose:
                print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
    return failed


def _level(unit: Unit) -> str:
    """The level of a unit; "" for what is compiled once."""
    return next((o.partition("=")[2] for o in unit[1] if o.startswith("-DOPSOCKET_LEVEL=")), "")


def _absent_levels() -> set[str]:
    """Levels that this processor lacks, as far as a library that was built here tells."""
    if not OUTPUT.exists():
        return set()
    library = ctypes.CDLL(str(OUTPUT))
    library.opsocket_level_name.restype = ctypes.c_char_p
    numbers = range(library.opsocket_level_count())
    return {library.opsocket_level_name(i).decode() for i in numbers if not library.opsocket_level_runs_here(i)}


def _sanitized(sanitizer: str, compiler: str) -> list[str]:
    extra = [f"-fsanitize={sanitizer}", "-O1", "-g1", "-fno-omit-frame-pointer"]
    if sanitizer == "undefined":
        extra.append("-fno-sanitize-recover=all")
    if sanitizer == "address" and "clang" not in compiler:
        # Checks as calls: those of an unrolled kernel, each in place, take the compiler six times as long.
        extra += ["--param", "asan-instrumentation-with-call-threshold=0"]
    return extra


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sanitize", nargs="+", choices=("address", "undefined", "thread"), default=[None])
    parser.add_argument("--machine", choices=sorted(LEVELS), default=platform.machine())
    parser.add_argument(
        "--emulate-bf16", action="store_true", help=f"level {_EMULATED} alone, on a processor without it"
    )
    parser.add_argument("--verbose", action="store_true", help="what the tests print, passed or not")
    parser.add_argument("tests", nargs="*", default=[])
    args = parser.parse_args()
    emulator: list[str] = []
    try:
        compiler = find_compiler()
        if args.machine != platform.machine():
            compiler, emulator = f"{args.machine}-linux-gnu-g++", [f"qemu-{args.machine}", "-cpu", "max"]
            if missing := [tool for tool in (compiler, emulator[0]) if not shutil.which(tool)]:
                print(f"not checked for {args.machine}: {' and '.join(missing)} not on the path")
                return
        if args.emulate_bf16 and _EMULATED not in LEVELS[args.machine]:
            parser.error(f"--emulate-bf16: {args.machine} has no level {_EMULATED}")
        if args.emulate_bf16:
            options = LEVELS[args.machine][_EMULATED]
            LEVELS[args.machine][_EMULATED] = [o for o in options if o != "-mavx512bf16"] + ["-DOPSOCKET_EMULATED_BF16"]
        failed = sum(
            check(args.tests, compiler, args.machine, emulator, s, args.emulate_bf16, args.verbose)
            for s in args.sanitize
        )
    except BuildError as error:
        sys.exit(f"error: {error}")
    sys.exit(f"{failed} failed" if failed else 0)


if __name__ == "__main__":
    main()
