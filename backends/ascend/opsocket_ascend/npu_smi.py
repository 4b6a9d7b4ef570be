"""The NPUs of this machine, by the driver's files and its own tool: no context on a device, no framework."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TOOL: Final = "npu-smi"
_ELSEWHERE: Final = "/usr/local/sbin/npu-smi"
_TIMEOUT_S: Final = 20
_NODE = re.compile(r"davinci(\d+)")
_ROW = re.compile(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
_CAPACITY = re.compile(r"^\s*(?:HBM|DDR) Capacity\(MB\)\s*:\s*(\d+)", re.MULTILINE)
_VISIBLE: Final = "ASCEND_RT_VISIBLE_DEVICES"


class NpuSmiError(OSError):
    """The driver's tool is absent, or does not answer."""


@dataclass(frozen=True)
class Npu:
    """logical: the number that CANN opens it by. memory_bytes: None where the tool does not say."""

    logical: int
    name: str
    memory_bytes: int | None


def driver_nodes(folder: Path = Path("/dev")) -> list[int]:
    """Numbers of the device files that the driver has made."""
    found = (_NODE.fullmatch(path.name) for path in folder.glob("davinci*"))
    return sorted(int(match[1]) for match in found if match)


def npus() -> list[Npu]:
    """Those that this process may see, in the order in which CANN numbers them for it; `NpuSmiError` says why not."""
    rows = parse_mapping(_ask("info", "-m"))
    found = {}
    for card, chip, logical, name in rows:
        answer = _CAPACITY.search(_ask("info", "-t", "memory", "-i", str(card), "-c", str(chip)))
        found[logical] = Npu(logical, name, int(answer[1]) << 20 if answer else None)
    return visible(found, os.environ.get(_VISIBLE))


def parse_mapping(text: str) -> list[tuple[int, int, int, str]]:
    """Card, chip on it, logical number and name of each NPU in `npu-smi info -m`; rows without a number are none."""
    return [(int(card), int(chip), int(logical), name) for card, chip, logical, name in _ROW.findall(text)]


def visible(found: dict[int, Npu], variable: str | None) -> list[Npu]:
    """Those that ASCEND_RT_VISIBLE_DEVICES lets a process see, in its order, up to the first that is none."""
    if variable is None:
        return [found[logical] for logical in sorted(found)]
    seen = []
    for name in (part.strip() for part in variable.split(",")):
        if not name.isdigit() or int(name) not in found:
            break
        seen.append(found[int(name)])
    return seen


def _ask(*arguments: str) -> str:
    tool = shutil.which(_TOOL) or (_ELSEWHERE if os.access(_ELSEWHERE, os.X_OK) else None)
    if tool is None:
        raise NpuSmiError(f"{_TOOL} is not on PATH")
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NpuSmiError(f"{_TOOL} {' '.join(arguments)}: {error}") from None
    if done.returncode:
        raise NpuSmiError(f"{_TOOL} {' '.join(arguments)}: {(done.stdout + done.stderr).strip()[:200]}")
    return done.stdout
