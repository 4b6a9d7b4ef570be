"""The AMD GPUs of this machine, as the kernel's driver lists them: no HIP context, no framework.

Linux kernel, drivers/gpu/drm/amd/amdkfd/kfd_topology.c: a node per processor, its properties as lines "name value".
Devices come in the order in which HIP numbers them, so far as HIP_VISIBLE_DEVICES names them by number.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")


@dataclass(frozen=True)
class Gpu:
    """arch: such as gfx942. node: the topology's number of it."""

    node: int
    name: str
    arch: str
    memory_bytes: int


def gpus(topology: Path = TOPOLOGY) -> list[Gpu]:
    """The GPUs that this process may see; none where the driver is absent."""
    nodes = sorted(topology.glob("[0-9]*"), key=lambda node: int(node.name)) if topology.is_dir() else []
    found = [gpu for gpu in map(_gpu, nodes) if gpu is not None]
    variable = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return visible(found, variable)


def visible(found: list[Gpu], variable: str | None) -> list[Gpu]:
    """Those that HIP_VISIBLE_DEVICES lets a process see, in its order; like HIP, it stops at the first that is none."""
    if variable is None:
        return found
    seen: list[Gpu] = []
    for name in (part.strip() for part in variable.split(",")):
        if not name.isdigit() or int(name) >= len(found):
            break
        seen.append(found[int(name)])
    return seen


def arch_of(version: int) -> str:
    """The architecture of a `gfx_target_version`: decimal major, minor, stepping; the last two are printed in hex."""
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{stepping:x}"


def _gpu(node: Path) -> Gpu | None:
    properties = _properties(node / "properties")
    if not properties.get("simd_count") or not properties.get("gfx_target_version"):
        return None  # a processor
    banks = (_properties(bank / "properties") for bank in (node / "mem_banks").glob("[0-9]*"))
    memory = sum(bank.get("size_in_bytes", 0) for bank in banks)
    name = _text(node / "name").strip() or "AMD GPU"
    return Gpu(int(node.name), name, arch_of(properties["gfx_target_version"]), memory)


def _properties(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
