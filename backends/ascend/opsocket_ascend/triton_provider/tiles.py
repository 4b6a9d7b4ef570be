"""How kernels for vector cores are cut: tiles of some heads of one row, and one program for each core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opsocket.operators import Session
from opsocket_ascend.triton_provider.targets import VECTOR_CORES

MOST_CHANNELS: Final = 2048
"""Of a head: what a tile holds. Kernels keep some sixteen arrays of a tile in 192 KiB of on-chip memory."""


@dataclass(frozen=True)
class Tile:
    """heads, wide: powers of two; wide holds a head's channels."""

    heads: int
    wide: int

    def per_row(self, heads: int) -> int:
        """Tiles of one row."""
        return -(-heads // self.heads)


def tile_of(heads: int, channels: int) -> Tile:
    """All heads of a row where they fit."""
    wide = _power(channels)
    return Tile(min(_power(heads), max(1, MOST_CHANNELS // wide)), wide)


def programs(session: Session, tiles: int) -> int:
    """As many as there are tiles or cores, whichever is less: each goes through the rest in steps of the grid."""
    return min(tiles, VECTOR_CORES[session.device.arch])


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
