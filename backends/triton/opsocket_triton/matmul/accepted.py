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
_THREE_PAIRS: Final = (
    "three pairs of registers are read, and two of them stored, in each turn of a loop of some 260 instructions, so "
    "that registers let one more program be there"
)
_INVARIANT: Final = (
    "up to six values that stay the same are stored before the loops, and read after them, or in eight rows of int8 "
    "codes in each turn of some 300 instructions, so that registers let one more program be there: read in the "
    "disassembly of nine launches, inferred for others"
)
_TWO_PAIRS: Final = (
    "two pairs of registers are stored and read once in each turn of a loop of some 120 instructions, so that 48 "
    "registers let two more programs be there"
)
_OUTSIDE_TWO: Final = "two values are stored before and behind the loops, none in one"
_OUTSIDE: Final = (
    "up to four values are stored before the loop and read after it: read in the disassembly of seven launches, "
    "inferred for others"
)

_TILES: Final = (Accepted(FEW, 32, {"OPERAND": "f32"}),)
_ROWS: Final = (
    Accepted(_SIX, 32, {"OFFSET": "f8e4m3fn", "ROWS": 8}),
    Accepted(_PAIR, 8, {"BITS": 0, "ROWS": 4}),
    Accepted(_THREE_PAIRS, 32, {"BITS": 0, "ROWS": 8}),
    Accepted(_INVARIANT, 24),
)
_CODES: Final = (
    Accepted(_TWO_PAIRS, 16, {"GROUP": 16, "X_GROUP": 32, "BM": 16}),
    Accepted(_OUTSIDE_TWO, 8, {"GROUP": 16, "X_GROUP": 32, "BM": 64}),
)
_GROUPED: Final = (Accepted(_OUTSIDE, 16, {"OPERAND": "f32"}),)

PRODUCTS: Final = {
    **{("product_tiles", arch, "spills"): _TILES for arch in ("sm_80", "sm_90", "sm_100", "sm_120")},
    **{("product_rows", arch, "spills"): _ROWS for arch in ("sm_80", "sm_90", "sm_100", "sm_120")},
    ("product_codes", "sm_80", "spills"): _CODES,
}
GROUPED: Final = {
    **{("grouped_tiles", arch, "spills"): _GROUPED for arch in ("sm_80", "sm_90", "sm_100", "sm_120")},
    ("grouped_tiles", "gfx1100", "spills"): (Accepted(_OUTSIDE, 20, {"BITS": 4}),),
}
