"""Reads compiled kernels: NVIDIA's with the tools that Triton's wheel carries, AMD's from their assembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import triton

from opsocket_triton.artifact import Measured, dots_of, dots_without_unit

_TOOLS: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TOOL_S: Final = 120.0
# Through Volta's HMMA, Hopper's warp groups (HGMMA) and Blackwell's tensor memory (UTCHMMA), by type: H, I, Q, O, D.
_NVIDIA_MATRIX: Final = re.compile(r"\b(?:UTC)?[HIQOD]G?MMA(?:\.[0-9A-Za-z.]+)?")
_NVIDIA_LOCAL: Final = re.compile(r"\b(?:LDL|STL)\b")
_AMD_MATRIX: Final = re.compile(r"\bv_(?:mfma|smfmac|wmma|swmmac)_\w+")


def measure(compiled: Any, backend: str) -> Measured:
    """What a kernel that Triton compiled shows. backend: "cuda" or "hip"."""
    read = _nvidia if backend == "cuda" else _amd
    return read(compiled, dots_of(compiled.asm["ttir"]), dots_without_unit(compiled.asm["ttgir"]))


def _nvidia(compiled: Any, dots: tuple[str, ...], without: int) -> Measured:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", _tool("cuobjdump", "-res-usage", file.name))
        if usage is None:
            raise ValueError("cuobjdump says nothing of registers")
        registers, local = int(usage[1]), int(usage[2]) + int(usage[3])
        # Disassembly takes half as long as a compilation. Products of f32, in full, use no matrix unit.
        has_unit = any(dot not in ("f32", "f64") for dot in dots)
        listing = _tool("nvdisasm", "-c", file.name) if has_unit or local else ""
    spills = len(_NVIDIA_LOCAL.findall(listing))
    matrix = tuple(sorted(set(_NVIDIA_MATRIX.findall(listing))))
    return Measured(registers, spills, local, compiled.metadata.shared, matrix, dots, without)


def _tool(name: str, *arguments: str) -> str:
    ran = subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, timeout=_TOOL_S, check=True)
    return ran.stdout


def _amd(compiled: Any, dots: tuple[str, ...], without: int) -> Measured:
    text = compiled.asm["amdgcn"]

    def fact(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        if found is None:
            raise ValueError(f"the assembly says nothing of {name}")
        return int(found[1])

    # A scalar register is spilled to a lane of a vector register, which costs no memory where that one stays.
    memory = fact("private_segment_fixed_size")
    return Measured(
        fact("vgpr_count"),
        fact("vgpr_spill_count") + (fact("sgpr_spill_count") if memory else 0),
        memory,
        max(compiled.metadata.shared, fact("group_segment_fixed_size")),
        tuple(sorted(set(_AMD_MATRIX.findall(text)))),
        dots,
        without,
    )
