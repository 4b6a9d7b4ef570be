"""How large a piece of a product one program takes, as data.

A tile of the weight is read once for `rows` rows of x. Below 16 rows a matrix unit has nothing to do and memory is the
limit; from a few hundred on, operations are. The largest of each kind that no format makes spill on its family.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Family = Literal["hopper", "ampere", "cdna", "rdna"]
"""Architectures whose matrix units take their factors alike: from shared memory (hopper), or from the registers of a
warp (ampere, before it and consumer chips after it; rdna), or of 64 lanes (cdna)."""


@dataclass(frozen=True)
class Tile:
    """rows of x by columns of y, `depth` stored elements of each of the weight's rows at a time. programs: that one
    compute unit should have at the same time, where there is work enough."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    programs: int = 2


def family(arch: str) -> Family:
    """Of an architecture by its name, one that `arches` does not list included."""
    if arch.startswith("gfx"):
        return "cdna" if arch.startswith("gfx9") else "rdna"
    return "hopper" if arch.startswith(("sm_9", "sm_10")) else "ampere"


# Small enough for x's part of a step to have fewer elements than the program has threads: the compiler then gives each
# thread its own x in the order of its codes, instead of moving codes between threads.
_VECTOR: Final = {
    1: Tile(1, 64, 64, 4, 2, 8),
    2: Tile(2, 128, 64, 8, 2, 4),
    4: Tile(4, 128, 32, 8, 2, 4),
    8: Tile(8, 128, 16, 8, 2, 4),
}
_HALF: Final[dict[Family, dict[int, Tile]]] = {
    "hopper": {16: Tile(16, 64, 64, 4, 3), 64: Tile(64, 64, 64, 4, 3), 128: Tile(128, 128, 64, 8, 2)},
    "ampere": {16: Tile(16, 64, 64, 4, 3), 64: Tile(64, 64, 32, 4, 3), 128: Tile(128, 64, 32, 8, 3)},
    "cdna": {16: Tile(16, 64, 64, 4, 2), 64: Tile(64, 64, 64, 4, 2), 128: Tile(128, 128, 64, 8, 2)},
    "rdna": {16: Tile(16, 64, 64, 4, 2), 64: Tile(64, 64, 32, 4, 2), 128: Tile(128, 64, 32, 8, 2)},
}
# One stage without a matrix unit for f32: factors are held in registers, and more programs hide the loads.
_SCALAR: Final = {16: Tile(16, 64, 16, 4, 1), 64: Tile(64, 64, 16, 8, 1)}
_F32: Final[dict[Family, dict[int, Tile]]] = {
    "hopper": _SCALAR,
    "ampere": _SCALAR,
    "cdna": {16: Tile(16, 64, 32, 4, 2), 64: Tile(64, 64, 32, 4, 2)},
    "rdna": _SCALAR,
}
_CODES: Final[dict[Family, dict[int, Tile]]] = {
    "hopper": {16: Tile(16, 64, 64, 4, 3), 64: Tile(64, 64, 64, 8, 3), 128: Tile(128, 128, 64, 8, 3)},
    "ampere": {16: Tile(16, 64, 64, 4, 3), 64: Tile(64, 64, 64, 8, 3), 128: Tile(128, 64, 64, 8, 3)},
    "cdna": {16: Tile(16, 64, 64, 4, 2), 64: Tile(64, 64, 64, 8, 2), 128: Tile(128, 64, 64, 8, 2)},
    "rdna": {16: Tile(16, 64, 64, 4, 2), 64: Tile(64, 64, 64, 8, 2)},
}


# What `opsocket tune` measures beside the above, whose place those take that are faster.
_OTHERS: Final[dict[str, tuple[Tile, ...]]] = {
    "vector 1": (
        Tile(1, 32, 64, 4, 2, 8),
        Tile(1, 128, 64, 8, 2, 4),
        Tile(1, 64, 64, 4, 2, 4),
        Tile(1, 16, 64, 4, 2, 8),
    ),
    "vector 2": (Tile(2, 64, 64, 8, 2, 4), Tile(2, 128, 64, 8, 2, 2)),
    "vector 4": (Tile(4, 64, 32, 8, 2, 4), Tile(4, 256, 32, 8, 2, 4)),
    "vector 8": (Tile(8, 128, 16, 8, 2, 8), Tile(8, 256, 16, 8, 2, 2)),
    "f32 16": (Tile(16, 32, 16, 4, 1), Tile(16, 64, 32, 4, 1), Tile(16, 64, 16, 4, 2)),
    "f32 64": (Tile(32, 64, 16, 4, 1), Tile(64, 64, 16, 8, 2), Tile(64, 128, 16, 8, 1), Tile(128, 64, 16, 8, 1)),
    "half 16": (Tile(16, 32, 64, 4, 3), Tile(16, 64, 128, 4, 2), Tile(16, 128, 64, 4, 3), Tile(16, 64, 64, 4, 4)),
    "half 64": (Tile(64, 32, 64, 4, 3), Tile(64, 128, 64, 8, 3), Tile(32, 64, 64, 4, 3)),
    "half 128": (Tile(128, 64, 64, 4, 3), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3), Tile(128, 256, 32, 8, 2)),
    "codes 16": (Tile(16, 32, 64, 4, 3), Tile(16, 64, 64, 4, 4), Tile(16, 128, 64, 4, 3), Tile(16, 64, 64, 8, 3)),
    "codes 64": (Tile(64, 64, 64, 4, 3), Tile(64, 128, 64, 8, 3), Tile(32, 64, 64, 4, 3)),
    "codes 128": (Tile(128, 64, 64, 8, 3), Tile(128, 128, 64, 8, 2), Tile(64, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3)),
}


def others(kind: str, most: int) -> tuple[Tile, ...]:
    """Tiles to measure beside the default one of a kind ("vector", "f32", "half", "codes") for at most so many rows."""
    return _OTHERS[f"{kind} {most}"]


def sizes(family: Family, kind: str) -> tuple[int, ...]:
    """The numbers of rows that there are default tiles of a kind for; the last is for all above, too."""
    return tuple({"vector": _VECTOR, "f32": _F32[family], "half": _HALF[family], "codes": _CODES[family]}[kind])


def vector_rows(family: Family, operand: str) -> int:
    """The most rows for the kernel without matrix units. These pad to 16 rows, which costs 16-bit floats nothing; those
    of CDNA take f32 too, at twice the rate of single products."""
    if operand != "f32":
        return 1
    return 4 if family == "cdna" else 8


def vector_tile(rows: int) -> Tile:
    """For at most `vector_rows` rows."""
    return _smallest(_VECTOR, rows)


def float_tile(family: Family, operand: str, rows: int) -> Tile:
    """For any number of rows, by a matrix unit of that type, or by f32 products."""
    return _smallest((_F32 if operand == "f32" else _HALF)[family], rows)


def piece(bits: int, group: int, x_group: int) -> int:
    """Columns whose products of codes are summed as integers: 0 for all; those that share every scale, as far as they
    lie together in fields of 8 / bits to a byte and their sums are exact in f32."""
    fields = 8 // bits
    if not group and not x_group:
        return 0
    if group % 32:
        return 16
    if x_group or group % (32 * fields):
        return 32
    alike = group & -group  # its largest power of two
    return min(alike, 256, 128 * fields)


def code_tile(family: Family, rows: int) -> Tile:
    """For any number of rows of codes, whose depth `deep` has to fit."""
    return _smallest(_CODES[family], rows)


def deep(tile: Tile, bits: int, piece: int) -> Tile:
    """A tile of codes as deep as pieces of so many columns are."""
    if piece == 0:
        return tile
    fields = 8 // bits
    return replace(tile, depth=32 if piece < 32 * fields else piece // fields)


def part(width: int, tile: Tile, tiles: int, units: int) -> int:
    """Stored elements of a row that one program takes, a multiple of the tile's depth and of a slab: all of `width`, or
    a part where the product has so few tiles that compute units would want for programs; units 0: all."""
    step = max(tile.depth, 32)
    parts = max(1, min(tile.programs * units // tiles, width // (2 * step)))
    return -(-width // (parts * step)) * step


def _smallest(tiles: dict[int, Tile], rows: int) -> Tile:
    return next((tile for most, tile in tiles.items() if rows <= most), tiles[max(tiles)])
