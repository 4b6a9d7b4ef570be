"""What became of a kernel that was compiled for an architecture, and what of that is not acceptable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from opsocket_triton.arches import Arch
from opsocket_triton.specialization import Constant, Specialization

Kind = Literal["shared memory", "spills", "matrix units", "precision"]

ACCEPTED_NAME: Final = "ACCEPTED"
"""Of a mapping beside the kernels, in their module: (function, architecture, kind of problem) -> some `Accepted`.
Kinds: "spills", "matrix units"."""

_ACCEPTABLE: Final = ("spills", "matrix units")
_DOT: Final = re.compile(r"tt\.dot(?:_scaled)? .*? : tensor<[0-9x]*x(\w+)> \* tensor<[0-9x]*x(\w+)>")
_PRECISION: Final = re.compile(r"inputPrecision = (\w+)")
_WITHOUT_UNIT: Final = re.compile(r"tt\.dot .*-> tensor<[0-9x]*x\w+, #blocked")


@dataclass(frozen=True)
class Measured:
    """What a binary shows, by the vendor's tools or in the assembly.

    registers: 32-bit ones of each lane. spills: instructions that load or store local memory (NVIDIA), or registers
    that were spilled to memory (AMD). local_bytes: memory of each lane, off chip. shared_bytes: on-chip memory of each
    program. matrix: instructions of the matrix units, by name. dots: types of the factors of each product in the
    source, with "/tf32" and the like where they are rounded first; dots_without_unit: products whose compiled form is
    scalar.
    """

    registers: int = 0
    spills: int = 0
    local_bytes: int = 0
    shared_bytes: int = 0
    matrix: tuple[str, ...] = ()
    dots: tuple[str, ...] = ()
    dots_without_unit: int = 0


@dataclass(frozen=True)
class Artifact:
    """kernel: "module:function". variant: its specialization, for people. shared_limit: of the architecture. occupancy:
    the share of a unit's warps that registers and on-chip memory leave room for. seconds: that the compiler took.
    problems: what is not acceptable, by kind; none: it is right. accepted: what would be, with the written reason.
    """

    kernel: str
    variant: str
    arch: str
    measured: Measured
    shared_limit: int
    occupancy: float
    seconds: float
    problems: tuple[str, ...]
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """reason: written, why the problem is the better choice. most: bytes of each lane that a spill may have. where: the
    constants of the launches that are meant; of several that fit a launch, the first counts."""

    reason: str
    most: int = 0
    where: Mapping[str, Constant] = field(default_factory=dict)

    def means(self, constants: Mapping[str, Constant]) -> bool:
        return all(name in constants and constants[name] == value for name, value in self.where.items())


FEW: Final = (
    "a few values that the assembler leaves in memory, so that registers let one more program be there: read in the "
    "disassembly of two launches of product_tiles, inferred for others"
)
"""Why NVIDIA's spills of some bytes are accepted."""


def dots_of(source: str) -> tuple[str, ...]:
    """The products in a kernel's TTIR, in order, by the types of their factors."""
    found = []
    for line in source.splitlines():
        match = _DOT.search(line)
        if match:
            precision = _PRECISION.search(line)
            types = match[1] if match[1] == match[2] else f"{match[1]} x {match[2]}"
            # NVIDIA's default is tf32, whatever the types; it says something of f32 alone.
            found.append(types + (f"/{precision[1]}" if precision and types == "f32" else ""))
    return tuple(found)


def dots_without_unit(compiled: str) -> int:
    """How many products of a kernel's TTGIR are spread over lanes instead of given to a matrix unit."""
    return sum(_WITHOUT_UNIT.search(line) is not None for line in compiled.splitlines())


def occupancy(arch: Arch, measured: Measured, warps: int) -> float:
    """The share of a unit's warps that can be there at the same time, by registers and on-chip memory; an estimate."""
    unit = arch.unit
    given = max(unit.granule, -(-measured.registers // unit.granule) * unit.granule)
    by_registers = min(unit.warps, unit.registers // given) * 4 // warps
    by_shared = unit.shared_bytes // max(1, measured.shared_bytes + unit.shared_reserve)
    return min(1.0, min(by_registers, by_shared, unit.programs) * warps / (4 * unit.warps))


def problems(arch: Arch, measured: Measured) -> dict[Kind, str]:
    """What a chip would refuse, do slowly or do less precisely than the source says."""
    found: dict[Kind, str] = {}
    if measured.shared_bytes > arch.shared_bytes:
        found["shared memory"] = f"{measured.shared_bytes} bytes, and {arch.name} has {arch.shared_bytes}"
    if measured.spills or measured.local_bytes:
        found["spills"] = f"{measured.spills} to memory, {measured.local_bytes} bytes of each lane"
    exact = [dot for dot in measured.dots if dot in ("f32", "f64")]
    rounded = [dot for dot in measured.dots if dot.startswith("f32/")]
    if rounded:
        found["precision"] = f"a product of f32 runs in {rounded[0].removeprefix('f32/')}"
    narrow = sorted(set(measured.dots) - set(exact) - set(rounded))
    if narrow and not measured.matrix:
        found["matrix units"] = f"products of {', '.join(narrow)}, and no matrix instruction"
    elif narrow and not exact and measured.dots_without_unit:
        found["matrix units"] = f"{measured.dots_without_unit} products of {', '.join(narrow)} run without them"
    return found


def judged(
    arch: Arch,
    launch: Specialization,
    measured: Measured,
    accepted: Mapping[tuple[str, str, str], Sequence[Accepted]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Problems as text, and those that the kernel's module accepts, with its reasons."""
    wrong, right = [], []
    constants = dict(launch.constants)
    for kind, text in problems(arch, measured).items():
        some = accepted.get((launch.kernel.partition(":")[2], arch.name, kind), ()) if kind in _ACCEPTABLE else ()
        found = next((each for each in some if each.means(constants)), None)
        if found and (kind != "spills" or measured.local_bytes <= found.most):
            right.append(f"{kind}: {text} ({found.reason})")
        elif found:
            wrong.append(f"{kind}: {text}, and at most {found.most} are accepted ({found.reason})")
        else:
            wrong.append(f"{kind}: {text}")
    return tuple(wrong), tuple(right)
