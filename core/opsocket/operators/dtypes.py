"""Array dtypes as strings, so that requests need no array library.

`f8e4m3fn` and `f8e4m3fnuz` are different formats with different names: bytes of one read as the other give
numbers that look plausible and are wrong by a factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opsocket.operators.errors import ContractError


@dataclass(frozen=True)
class DType:
    """One element type: `unit_roundoff` is 2^-p for a significand of p bits (0 for integers)."""

    name: str
    itemsize: int
    unit_roundoff: float = 0.0


_DTYPES: Final = {
    d.name: d
    for d in (
        DType("f64", 8, 2.0**-53),
        DType("f32", 4, 2.0**-24),
        DType("f16", 2, 2.0**-11),
        DType("bf16", 2, 2.0**-8),
        DType("f8e4m3fn", 1, 2.0**-4),
        DType("f8e4m3fnuz", 1, 2.0**-4),
        DType("f8e5m2", 1, 2.0**-3),
        DType("i64", 8),
        DType("i32", 4),
        DType("i8", 1),
        DType("u8", 1),
    )
}

FLOAT_DTYPES: Final = ("f32", "bf16", "f16")
"""What activations, queries and outputs may be."""


def dtype_info(name: str, argument: str = "dtype") -> DType:
    """The facts of one dtype; `ContractError` naming `argument` where there is no such dtype."""
    try:
        return _DTYPES[name]
    except (KeyError, TypeError):
        raise ContractError(argument, f"one of {sorted(_DTYPES)}", repr(name)) from None


def check_float(name: str, argument: str) -> None:
    """`ContractError` unless `name` is one of `FLOAT_DTYPES`."""
    if name not in FLOAT_DTYPES:
        raise ContractError(argument, f"one of {list(FLOAT_DTYPES)}", repr(name))
