"""Spills of compiled products that are accepted, and why: what their disassembly shows."""

from __future__ import annotations

from typing import Final

from opsocket_triton.artifact import FEW, Accepted

_PAIR: Final = (
    "one pair of registers is stored and read once in each turn of a loop of some 220 instructions, so that 64 "
    "registers let a fourth program be there"
)
_SIX: Final = (
    "six registers of some 380 instructions of a loop are read from memory, addresses or sums of f8 weights with eight "
    "rows, so that 80 registers let a third program be there"
)
_OUTSIDE: Final = "three values are stored before the loop and read after it"

TILES: Final = (Accepted(FEW, 32, {"OPERAND": "f32"}),)
ROWS: Final = (Accepted(_SIX, 32, {"OFFSET": "f8e4m3fn", "ROWS": 8}), Accepted(_PAIR, 8, {"BITS": 0, "ROWS": 4}))
GROUPED: Final = (Accepted(_OUTSIDE, 16, {"OPERAND": "f32", "BITS": 4}),)
