"""What the kernels are compiled for: facts of each architecture, from its vendor's manuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from opsocket.operators import ContractError


@dataclass(frozen=True)
class Unit:
    """A streaming multiprocessor, a compute unit (CDNA), a workgroup processor (RDNA): four schedulers each.

    warps: that one scheduler keeps at most. registers: 32-bit ones for each lane that one scheduler has for all of its
    warps, given out in multiples of `granule`. shared_bytes: on-chip memory in all, of which each program takes
    `shared_reserve` for itself. programs: at most.
    """

    warps: int
    registers: int
    granule: int
    shared_bytes: int
    shared_reserve: int = 0
    programs: int = 64


@dataclass(frozen=True)
class Arch:
    """name: the vendor's, as `DeviceInfo.arch` has it. warp: lanes of a warp (a wave). shared_bytes: on-chip memory
    that one program can have at most. registers: 32-bit registers that one lane can have at most (VGPRs and AGPRs
    together on CDNA). fp8: the kind of 8-bit floats that its matrix units take, "fn" (OCP), "fnuz", or "" for none.
    chained_products: of 16-bit floats, how many its matrix units add to a sum at once, before they cut off; 1 where
    nobody has published it (Li et al., "FTTN", 2024; Xie et al., "MMA-Sim", 2025).
    """

    name: str
    backend: Literal["cuda", "hip"]
    warp: int
    shared_bytes: int
    registers: int
    fp8: Literal["fn", "fnuz", ""]
    unit: Unit
    chained_products: int = 1

    @property
    def target(self) -> tuple[str, int | str, int]:
        """As Triton's GPUTarget takes it: backend, arch, warp size."""
        return self.backend, int(self.name.removeprefix("sm_")) if self.backend == "cuda" else self.name, self.warp


_KIB: Final = 1024
_CDNA: Final = Unit(8, 512, 8, 64 * _KIB)
_FACTS: Final = (
    # CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"
    Arch("sm_80", "cuda", 32, 163 * _KIB, 255, "", Unit(16, 512, 8, 164 * _KIB, _KIB, 32), 8),
    Arch("sm_90", "cuda", 32, 227 * _KIB, 255, "fn", Unit(16, 512, 8, 228 * _KIB, _KIB, 32), 16),
    Arch("sm_100", "cuda", 32, 227 * _KIB, 255, "fn", Unit(16, 512, 8, 228 * _KIB, _KIB, 32), 16),
    Arch("sm_120", "cuda", 32, 99 * _KIB, 255, "fn", Unit(12, 512, 8, 100 * _KIB, _KIB, 24), 16),
    # AMD's instruction set manuals of CDNA 2 to 4, RDNA 3 and 4; LLVM's AMDGPU usage, "Memory Spaces"
    Arch("gfx90a", "hip", 64, 64 * _KIB, 512, "", _CDNA),
    Arch("gfx942", "hip", 64, 64 * _KIB, 512, "fnuz", _CDNA),
    Arch("gfx950", "hip", 64, 160 * _KIB, 512, "fn", Unit(8, 512, 8, 160 * _KIB)),
    Arch("gfx1100", "hip", 32, 64 * _KIB, 256, "", Unit(16, 1536, 24, 128 * _KIB)),
    Arch("gfx1201", "hip", 32, 64 * _KIB, 256, "fn", Unit(16, 1536, 24, 128 * _KIB)),
)
ARCHES: Final = {arch.name: arch for arch in _FACTS}


def arches_of(backend: Literal["cuda", "hip"]) -> tuple[Arch, ...]:
    """Those of one vendor, oldest first."""
    return tuple(arch for arch in _FACTS if arch.backend == backend)


def find_arch(name: str) -> Arch:
    """The facts of an architecture by its name; `ContractError` lists those there are."""
    try:
        return ARCHES[name]
    except KeyError:
        raise ContractError("arch", f"one of {', '.join(ARCHES)}", repr(name)) from None
