"""Builds the stand-in CANN libraries with gcc: `python -m opsocket_ascend.emulator.build`, into this environment.

Needs the torch_npu wheel: its libraries say which functions they want, and its headers check the prototypes of ours.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent / "src"
FOLDER: Final = Path(sys.prefix) / "lib" / "opsocket-ascend-emulator"
"""Where the libraries of this environment are."""

HOW: Final = "make ascend-emulator, or where opsocket is installed: python -m opsocket_ascend.emulator.build"
STAMP: Final = "built-from"
RUNTIME: Final = "libascendcl.so"
OPERATORS: Final = "libopapi.so"
EMPTY: Final = (
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
    "libatb.so",
    "libnnopbase.so",
)
"""Libraries that torch_npu is linked with, or loads, and whose functions, where it wants any, fail in RUNTIME."""

_OF_CANN = re.compile(r"acl\w+|rt[A-Z]\w+|Msprof\w+|Hccl\w+|_ZN3atb\w+|_ZNK?2ge\w+")
_SILENT = re.compile(r"Msprof\w+|aclAppLog")
"""Profiling and logging, which are off: they return 0 and do nothing."""

_OPERATOR = re.compile(r"^(aclnn[A-Za-z0-9_]+?)(?:GetWorkspaceSize)?$", re.MULTILINE)
_FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-Wall", "-Wno-unused-parameter")

_COMMON_TRAMPOLINE = """
to_opsocket_call:
  pushq %rbp
  movq %rsp, %rbp
  subq $128, %rsp
  movq %rdi, -48(%rbp)
  movq %rsi, -40(%rbp)
  movq %rdx, -32(%rbp)
  movq %rcx, -24(%rbp)
  movq %r8, -16(%rbp)
  movq %r9, -8(%rbp)
  movsd %xmm0, -112(%rbp)
  movsd %xmm1, -104(%rbp)
  movsd %xmm2, -96(%rbp)
  movsd %xmm3, -88(%rbp)
  movsd %xmm4, -80(%rbp)
  movsd %xmm5, -72(%rbp)
  movsd %xmm6, -64(%rbp)
  movsd %xmm7, -56(%rbp)
  movq %rax, %rdi
  leaq -48(%rbp), %rsi
  leaq -112(%rbp), %rdx
  leaq 16(%rbp), %rcx
  call opsocket_call
  leave
  ret
"""


class BuildError(RuntimeError):
    """Why the libraries can't be built here."""


def wheel() -> Path:
    """The folder of the installed torch_npu; imports nothing."""
    found = importlib.util.find_spec("torch_npu")
    if found is None or not found.submodule_search_locations:
        raise BuildError("torch_npu is not installed here: pip install --no-deps torch-npu==2.13.0")
    return Path(found.submodule_search_locations[0])


def is_built() -> bool:
    """Whether the libraries are there, of these sources and this wheel."""
    stamp = FOLDER / STAMP
    return stamp.exists() and stamp.read_text() == _digest()


def build() -> Path:
    """Build them where they are missing or out of date; `BuildError` says why they can't be."""
    if is_built():
        return FOLDER
    if platform.machine() != "x86_64":
        raise BuildError(f"the emulator's trampolines are written for x86-64, and this is {platform.machine()}")
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is not on PATH; Debian's and Ubuntu's packages gcc and binutils have it")
    package = wheel()
    include = package / "include" / "third_party" / "acl" / "inc"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / STAMP).unlink(missing_ok=True)
    libraries = [*sorted((package / "lib").glob("*.so")), *package.glob("_C*.so")]
    sources = ("runtime.c", "capture.c", "aclop.c")
    runtime = (*(_compile(source, f"-I{include}") for source in sources), _compile("memory.c"))
    missing = sorted(name for name in _symbols("--undefined-only", *libraries) if _OF_CANN.fullmatch(name))
    ours = _symbols("--defined-only", *runtime)
    (FOLDER / "missing.S").write_text(_missing(name for name in missing if name not in ours))
    _link(RUNTIME, *runtime, FOLDER / "missing.S")
    (FOLDER / "operators.S").write_text(_trampolines(_operators(package / "lib" / "libtorch_npu.so")))
    _link(OPERATORS, _compile("opapi.c"), FOLDER / "operators.S")
    for name in EMPTY:
        _link(name, "-Wl,--no-as-needed", f"-L{FOLDER}", "-lascendcl")
    (FOLDER / STAMP).write_text(_digest())
    return FOLDER


def _digest() -> str:
    """Of everything that the libraries are made from."""
    digest = hashlib.sha256(importlib.metadata.version("torch_npu").encode())
    for path in (Path(__file__), *sorted(SOURCES.iterdir())):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _compile(source: str, *flags: str) -> Path:
    target = FOLDER / source.replace(".c", ".o")
    _gcc(*_FLAGS, *flags, "-c", SOURCES / source, "-o", target)
    return target


def _link(name: str, *inputs: str | Path) -> None:
    _gcc("-shared", "-o", FOLDER / name, f"-Wl,-soname,{name}", *inputs, "-lpthread")


def _gcc(*arguments: str | Path) -> None:
    done = subprocess.run(["gcc", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"gcc {' '.join(map(str, arguments))}\n{done.stderr}")


def _symbols(which: str, *files: Path) -> set[str]:
    dynamic = ["-D"] if files[0].suffix == ".so" else []
    listed = subprocess.run(["nm", *dynamic, which, *map(str, files)], capture_output=True, text=True, check=True)
    words = (line.split() for line in listed.stdout.splitlines() if line)
    return {word[-1].partition("@")[0] for word in words if len(word) > 1 and word[-2] not in "wv"}


def _operators(library: Path) -> list[str]:
    """Of the aclnn functions that a library looks up by name."""
    return sorted(set(_OPERATOR.findall(library.read_bytes().decode("latin-1").replace("\0", "\n"))))


def _missing(names: Iterable[str]) -> str:
    """Functions that say by their name that they are not emulated."""
    text, strings = [".text"], [".section .rodata"]
    for number, name in enumerate(names):
        text.append(f".globl {name}\n.type {name}, @function\n{name}:")
        if _SILENT.fullmatch(name):
            text.append("  xorl %eax, %eax\n  ret")
        else:
            text.append(f"  leaq .L{number}(%rip), %rdi\n  jmp opsocket_not_emulated@PLT")
            strings.append(f'.L{number}: .asciz "{name}"')
    return "\n".join([*text, *strings, _NO_EXECUTABLE_STACK])


def _trampolines(operators: Iterable[str]) -> str:
    """Both functions of each operator, with nothing but the name in a register that no argument is passed in."""
    text, strings = [".text"], [".section .rodata"]
    names = (name for operator in operators for name in (operator, f"{operator}GetWorkspaceSize"))
    for number, name in enumerate(names):
        text.append(f".globl {name}\n.type {name}, @function\n{name}:")
        text.append(f"  leaq .L{number}(%rip), %rax\n  jmp to_opsocket_call")
        strings.append(f'.L{number}: .asciz "{name}"')
    return "\n".join([*text, _COMMON_TRAMPOLINE, *strings, _NO_EXECUTABLE_STACK])


_NO_EXECUTABLE_STACK: Final = '.section .note.GNU-stack,"",@progbits\n'


if __name__ == "__main__":
    try:
        print(f"stand-in CANN libraries for torch_npu {importlib.metadata.version('torch_npu')}: {build()}")
    except (BuildError, importlib.metadata.PackageNotFoundError) as error:
        raise SystemExit(f"the Ascend emulator can't be built: {error}") from None
