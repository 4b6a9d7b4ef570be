"""Compiles the device, once for each version of torch, into the user's cache: one C++ file against torch's headers."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("device.cpp")
_FLAGS: Final = ("-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unused")
_PATIENCE_S: Final = 600


def library() -> Path:
    """Where the compiled device is, or will be: a file named by all that it depends on."""
    told = "\0".join((SOURCE.read_text(), version("torch"), platform.machine(), *_FLAGS))
    folder = os.environ.get("XDG_CACHE_HOME")
    root = (Path(folder) if folder else Path.home() / ".cache") / "opsocket" / "simulated"
    return root / f"device-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"


def absence() -> str | None:
    """Why there can be no such device here, as far as that is known without compiling; None where nothing is known."""
    if platform.system() != "Linux":
        return f"memory is protected on Linux only, and this is {platform.system()}"
    path = library()
    if path.exists():
        return None
    reason = _reason(path)
    if reason.exists():
        return f"{reason.read_text().strip()} (kept in {reason}: delete it to try again)"
    return None if _compiler() else "no C++ compiler: neither $CXX nor g++, clang++ or c++ on the path"


def built() -> Path | str:
    """The library, compiled by whoever comes first; or why there is none."""
    if why := absence():
        return why
    path = library()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() and absence() is None:
            _compile(path)
    return absence() or path


def _compile(path: Path) -> None:
    import torch

    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    headers = root / "include"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [
            *_compiler(),
            *_FLAGS,
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            *(f"-I{where}" for where in (headers, headers / "torch" / "csrc" / "api" / "include")),
            str(SOURCE),
            # Already in the process when the device is loaded, and found there by their names.
            *(f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"),
            *("-o", str(made)),
        ]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
            said, failed = ran.stderr, ran.returncode != 0
        except (OSError, subprocess.TimeoutExpired) as error:
            said, failed = str(error), True
        if not failed:
            os.replace(made, path)
            return
    errors = [line for line in said.splitlines() if "error" in line] or said.splitlines()[-1:]
    _reason(path).write_text(f"{' '.join(command[:1])} failed: {' / '.join(errors[:3])}\n")


def _reason(path: Path) -> Path:
    return path.with_suffix(".reason")


def _compiler() -> list[str]:
    """$CXX, or the first of g++, clang++ and c++ on the path."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name.split()[0]):
            return name.split()
    return []
