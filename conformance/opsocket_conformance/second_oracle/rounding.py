"""Codes nearest to a quotient, and where its own rounding decides between two of them, as ONNX primitives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opsocket.operators.dtypes import dtype_info
from opsocket_conformance.second_oracle.graph import Tensor, Writer

_TIE: Final = 4 * dtype_info("f32").unit_roundoff
"""docs/tolerance.md: within 4u, relative, of a tie, either neighbour is right."""
_EXPONENT_BITS: Final = 0x7F800000
"""Of an f32: what is left of a number is the power of two at or below it."""

FRACTION_BITS: Final = 0x007FFFFF
"""Of an f32: what a power of two has none of."""

_FP8: Final = {"f8e4m3fn": (3, -6), "f8e4m3fnuz": (3, -7), "f8e5m2": (2, -14)}
"""Fraction bits, and the exponent of the smallest normal number."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """codes: nearest to the quotient, ties to even. other: the neighbour where near a tie, else the same. All f32,
    which has every code exactly."""

    codes: Tensor
    other: Tensor
    near_tie: Tensor


def nearest_integers(g: Writer, quotient: Tensor, largest: int) -> Nearest:
    """Integers of at most `largest` in size; quotient f32."""
    codes = g("Clip", g("Round", quotient), -float(largest), float(largest))
    return _with_neighbours(g, quotient, codes, g.constant(1.0, "f32"), largest)


def nearest_fp8(g: Writer, quotient: Tensor, code: str, largest: float) -> Nearest:
    """Values of an 8-bit float, saturated at `largest`; quotient f32."""
    fraction_bits, smallest = _FP8[code]
    binade = (g("Abs", quotient).bits_as("u32") & _EXPONENT_BITS).bits_as("f32")
    quantum = g("Max", binade, 2.0**smallest) * 2.0**-fraction_bits
    return _with_neighbours(g, quotient, quotient.cast(code).cast("f32"), quantum, largest)


def _with_neighbours(g: Writer, quotient: Tensor, codes: Tensor, quantum: Tensor, largest: float) -> Nearest:
    """quantum: distance of the two representable values around the quotient, a power of two, so that no step here is
    rounded."""
    size = g("Abs", quotient)
    below = g("Floor", size / quantum) * quantum
    above = below + quantum
    near_tie = g("Abs", size - (below + quantum * 0.5)) <= size * _TIE
    reached = g("Where", g("Abs", codes).equals(below), above, below)
    other = g("Where", near_tie & (above <= largest), g("Sign", quotient) * reached, codes)
    return Nearest(codes, other, near_tie)
