"""How large a piece of a product one program takes, as data.

A tile of the weight is read once for `rows` rows of x. Below 16 rows a matrix unit has nothing to do and memory is the
limit; from a few hundred on, operations are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True)
class Tile:
    """rows of x by columns of y, `depth` stored elements of each of the weight's rows at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_VECTOR: Final = {rows: Tile(rows, 64 // max(1, rows // 2), 128, 4, 2) for rows in (1, 2, 4, 8)}
_HALF: Final = {16: Tile(16, 64, 64, 4, 3), 64: Tile(64, 64, 64, 4, 3), 128: Tile(128, 128, 64, 8, 2)}
_F32: Final = {
    # One stage: a product without matrix units holds its factors in registers, and more programs hide the loads.
    "cuda": {16: Tile(16, 64, 16, 4, 1), 64: Tile(64, 64, 16, 8, 1)},
    "hip": {16: Tile(16, 64, 32, 4, 2), 64: Tile(64, 64, 32, 4, 2)},
}


def vector_rows(backend: str, operand: str) -> int:
    """The most rows for the kernel without matrix units. These pad to 16 rows, which costs 16-bit floats nothing; AMD's
    take f32 too, at twice the rate of single products."""
    if operand != "f32":
        return 1
    return 8 if backend == "cuda" else 4


def vector_tile(rows: int) -> Tile:
    """For at most `vector_rows` rows."""
    return next(tile for most, tile in _VECTOR.items() if rows <= most)


def float_tile(backend: str, operand: str, rows: int) -> Tile:
    """For any number of rows, by a matrix unit of that type, or by f32 products."""
    tiles = _F32[backend] if operand == "f32" else _HALF
    return next((tile for most, tile in tiles.items() if rows <= most), tiles[max(tiles)])


_CODES: Final = {16: Tile(16, 64, 64, 4, 3), 64: Tile(64, 64, 64, 4, 3), 128: Tile(128, 128, 64, 8, 2)}


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


def code_tile(rows: int, bits: int, piece: int) -> Tile:
    """For any number of rows of codes, in pieces of so many columns."""
    tile = next((tile for most, tile in _CODES.items() if rows <= most), _CODES[max(_CODES)])
    if piece == 0:
        return tile
    fields = 8 // bits
    return replace(tile, depth=32 if piece < 32 * fields else piece // fields)


def part(width: int, depth: int, tiles: int, units: int) -> int:
    """Stored elements of a row that one program takes, a multiple of `depth` and of a slab: all of `width`, or a part
    where that gives each of so many compute units about two programs of at least four steps; units 0: all."""
    parts = max(1, min(2 * units // tiles, width // (4 * depth)))
    step = max(depth, 32)
    return -(-width // (parts * step)) * step
