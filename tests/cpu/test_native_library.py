"""The native library: structs of one size on both sides, every level of instructions, and a machine without it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import opsocket_cpu.native
from opsocket_cpu.native.command import Command, Op
from opsocket_cpu.native.library import LEVEL_VARIABLE, library

BUILD = Path(__file__).resolve().parents[2] / "backends" / "cpu" / "native" / "build.py"

needs_library = pytest.mark.skipif(library() is None, reason="the native library was not built here")

RUN = """
import numpy as np, opsocket
from opsocket.operators import Request, SiluMulSpec
session = opsocket.open("cpu")
x = np.linspace(-9, 9, 77, dtype=np.float32)[None]
plan = session.plan(Request(SiluMulSpec(77)))
y = session.download(plan.run(session.upload(x), session.upload(x)))
np.testing.assert_allclose(y, x * x / (1 + np.exp(-x)), rtol=1e-5, atol=1e-6)
print(plan.provider, session.library.level if session.library else "none")
"""


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


def _commands() -> list[type[Command]]:
    for module in pkgutil.iter_modules(opsocket_cpu.native.__path__):
        if module.name.startswith("lib"):  # the library itself, which is no Python module
            continue
        importlib.import_module(f"opsocket_cpu.native.{module.name}")

    def below(kind: type[Command]) -> list[type[Command]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return below(Command)


@needs_library
def test_commands_have_the_size_that_the_library_was_compiled_with():
    found: Any = library()
    sizes = {op: found.command_size(op) for op in Op}
    for command in _commands():
        name = command.__name__.removesuffix("Command")
        named = [op for op in Op if op.name.replace("_", "").lower() == (name or "none").lower()]
        if named:
            assert found.command_size(named[0]) in (0, _size(command)), command.__name__
        else:
            assert _size(command) in sizes.values(), command.__name__
    assert sizes[Op.ADD]
    assert sizes[Op.SAMPLE]


def _size(command: type[Command]) -> int:
    import ctypes

    return ctypes.sizeof(command)


@needs_library
def test_packed_bytes_are_the_struct():
    import ctypes

    def fields(kind: Any) -> list[Any]:
        return [field for base in reversed(kind.__mro__) for field in vars(base).get("_fields_", ())]

    def kinds(kind: Any) -> list[Any]:
        inner = issubclass(kind, ctypes.Structure)
        return [found for _, field in fields(kind) for found in kinds(field)] if inner else [kind]

    def numbers(value: Any) -> list[Any]:
        inner = isinstance(value, ctypes.Structure)
        return [n for name, _ in fields(type(value)) for n in numbers(getattr(value, name))] if inner else [value]

    nested = 0
    for command in _commands():
        if command is not Command and command.pack is Command.pack:
            continue  # has an array
        values = [i + 1.0 if kind is ctypes.c_double else i + 1 for i, kind in enumerate(kinds(command))]
        assert numbers(command.from_buffer_copy(command.pack(*values))) == values, command.__name__
        nested += len(values) > len(fields(command))
    assert nested


@needs_library
def test_every_level_of_this_processor_can_be_forced():
    for level in library().levels():
        done = _python(RUN, **{LEVEL_VARIABLE: level.name})
        if level.runs_here:
            assert done.stdout.split() == ["native", level.name], done.stderr
        else:
            assert "ContractError" in done.stderr


@needs_library
def test_without_a_word_the_best_level_that_runs_here_is_taken():
    best = next(level.name for level in library().levels() if level.runs_here)
    assert _python(RUN, **{LEVEL_VARIABLE: ""}).stdout.split() == ["native", best]


@needs_library
def test_levels_stand_best_first_and_dots_of_bf16_are_slow_on_an_intel_processor():
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        best_first = ["amx", "avx512_vnni", "avx512_bf16", "avx_vnni", "avx2", "portable"]
    elif platform.machine() == "x86_64":
        best_first = ["amx", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx2", "portable"]
    else:
        best_first = ["neon", "portable"]
    assert [level.name for level in library().levels()] == best_first


@needs_library
def test_an_unknown_level_is_refused_with_those_there_are():
    done = _python(RUN, **{LEVEL_VARIABLE: "avx1024"})
    assert done.returncode
    assert "ContractError" in done.stderr
    assert LEVEL_VARIABLE in done.stderr
    for level in library().levels():
        assert (level.name in done.stderr) == level.runs_here


def test_without_the_library_other_providers_serve():
    missing = "import pathlib, opsocket_cpu.native.library as l; l.PATH = pathlib.Path('/nowhere/lib.so');"
    done = _python(missing + "l.REASON = pathlib.Path('/nowhere/reason')\n" + RUN)
    assert done.stdout.split() == ["composed", "none"], done.stderr


@needs_library
def test_a_library_of_other_sources_is_not_called(tmp_path: Path) -> None:
    sources = tmp_path / "src"
    shutil.copytree(BUILD.parent / "src", sources)
    there = f"import pathlib, opsocket_cpu.native.library as l; l.SOURCES = pathlib.Path({str(sources)!r})\n"
    ask = there + "print(l.absence() and l.absence().partition(': ')[2])\n" + RUN
    assert _python(ask).stdout.splitlines()[0] == "None"
    panel = sources / "panel.h"
    panel.write_text(panel.read_text() + "\n")
    done = _python(ask)
    assert done.stdout.splitlines() == ["run `make native`", "composed none"], done.stderr


@needs_library
def test_doctor_tells_the_level_in_force() -> None:
    done = _python(
        "import runpy, sys; sys.argv = ['opsocket', 'doctor']; runpy.run_module('opsocket', run_name='__main__')",
        **{LEVEL_VARIABLE: "portable"},
    )
    assert "native kernels at level portable" in done.stdout


@pytest.mark.parametrize(("options", "code"), [(["--optional"], 0), ([], 1)])
def test_without_a_compiler_the_reason_is_left(tmp_path: Path, options: list[str], code: int) -> None:
    output = tmp_path / "library.so"
    output.write_text("an old one")
    command = [sys.executable, str(BUILD), "--output", str(output), *options]
    environment = {key: value for key, value in os.environ.items() if key != "CXX"} | {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == code
    assert "no C++ compiler" in done.stderr
    assert output.exists() == (code == 1)
    assert output.with_suffix(".reason").exists() == (code == 0)
