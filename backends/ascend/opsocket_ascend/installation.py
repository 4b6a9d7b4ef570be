"""What has to be installed for an NPU to be used from Python, and what of it is missing. Nothing is imported here.

torch_npu is built for one release of torch, and needs CANN, Huawei's toolkit, whose runtime it is linked with.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from opsocket.operators import Absence

MINIMUM_CANN: Final = (8, 5, 0)
"""What the README of torch_npu 2.13's wheel pairs with its newest release."""

_HOMES: Final = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
_USUAL: Final = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann", "/usr/local/Ascend/latest")
_RUNTIME: Final = "libascendcl.so"
_DOWNLOAD: Final = "https://www.hiascend.com/cann"


def missing_packages() -> Absence | None:
    """What is in the way among Python's packages."""
    if importlib.util.find_spec("torch") is None:
        return Absence("the Python package torch is not installed", "pip install 'opsocket[ascend]'")
    if importlib.util.find_spec("torch_npu") is None:
        return Absence(
            "the Python package torch_npu is not installed",
            f"pip install --no-deps torch-npu=={_release('torch')}, the release for the torch that is here",
        )
    torch, npu = _release("torch"), _release("torch_npu")
    if torch != npu:
        return Absence(
            f"torch_npu {npu} is for torch {npu}, and torch {torch} is installed",
            f"pip install --no-deps torch-npu=={torch}, or pip install torch=={npu}",
        )
    return None


def missing_cann() -> Absence | None:
    """What is in the way of CANN: absent, not on the loader's path, or too old."""
    need = ".".join(map(str, MINIMUM_CANN))
    home = next(_homes(), None)
    if home is None:
        variables = " and ".join(f"${name}" for name in _HOMES)
        return Absence(
            f"CANN is not installed: no {_RUNTIME} below {variables} nor below {_USUAL[0]}",
            f"install the CANN toolkit and kernels {need} or newer: {_DOWNLOAD}",
        )
    version = cann_version(home)
    if version is not None and version < MINIMUM_CANN:
        have = ".".join(map(str, version))
        return Absence(f"CANN {have} at {home} is too old: torch_npu needs {need}", f"install {need}: {_DOWNLOAD}")
    if not any(os.environ.get(name) for name in _HOMES):
        return Absence(f"CANN at {home} is not set up in this shell", f"source {home.parent}/set_env.sh")
    return None


def cann_version(home: Path) -> tuple[int, ...] | None:
    """Of the toolkit at `home`, by the file that its installer leaves; None where there is none."""
    for file in sorted(home.glob("*/ascend_toolkit_install.info")) + sorted(home.glob("ascend_toolkit_install.info")):
        found = re.search(r"^version=(\d+)\.(\d+)(?:\.(\d+))?", file.read_text(errors="replace"), re.MULTILINE)
        if found:
            return tuple(int(part or 0) for part in found.groups())
    return None


def cann_here() -> str:
    """The toolkit and where it is, "" where there is none."""
    home = next(_homes(), None)
    if home is None:
        return ""
    version = cann_version(home)
    return f"CANN {'.'.join(map(str, version)) if version else 'of unknown version'} at {home}"


def torch_npu_version() -> str:
    """Of the package that is installed."""
    return importlib.metadata.version("torch_npu")


def _homes() -> Iterator[Path]:
    for path in (*(os.environ.get(name, "") for name in _HOMES), *_USUAL):
        home = Path(path)
        if path and any((home / below / _RUNTIME).exists() for below in ("lib64", "runtime/lib64", "fwkacllib/lib64")):
            yield home


def _release(package: str) -> str:
    """Version without local part and post release: what has to be equal in torch and torch_npu."""
    version = importlib.metadata.version(package).partition("+")[0]
    return re.split(r"\.?(?:post|rc|dev|a|b)\d*", version)[0]
