"""How far a correct result may be from the oracle: E = 2 (u_out |ref| + T) for every element, T derived from the
request's declared numerics. Never tuned, never keyed on a backend. The derivation is in docs/tolerance.md.

Notation: u is a unit roundoff (2^-24 for f32, 2^-11 f16, 2^-8 bf16), g(n) the growth of n accumulated roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsocket.operators import Numerics
from opsocket_conformance.floats import roundoff, tiny

Float64 = npt.NDArray[np.float64]

U = roundoff("f32")
U_EXP = {"exact": 4 * U, "approx": 2.0**-12}
U_TANH = {"exact": 4 * U, "approx": 2.0**-12}
STEP = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-25}
"""What rounding to a type loses at most, in absolute terms, below its normal range."""
TIE = 4 * U
"""How near to a tie, relative to the quotient x / s, a code may fall either way."""


@dataclass(frozen=True, eq=False)
class Bound:
    """E of every element, in its two parts: `rounding` = 2 u_out |ref|, independent from element to element, and
    `inner` = 2 T, which elements of one row may share. `slack`: what underflow may cost."""

    rounding: Float64
    inner: Float64
    slack: float

    @property
    def total(self) -> Float64:
        return self.rounding + self.inner


def bound(ref: Float64, inner: npt.ArrayLike, out_dtype: str, extra_slack: float = 0.0) -> Bound:
    """E from a reference, T and the type of the output. No output is wider than f32."""
    ref = np.asarray(ref, np.float64)
    magnitude = np.where(np.isfinite(ref), np.abs(ref), 0.0)
    inner = np.broadcast_to(2 * np.asarray(inner, np.float64), ref.shape)
    return Bound(2 * roundoff(out_dtype) * magnitude, inner, tiny(out_dtype) + extra_slack)


def growth(n: npt.ArrayLike) -> Float64:
    """g(n) = min(n, 6 sqrt(n)): what n roundings of random sign add up to but for one case in 10^7."""
    n = np.asarray(n, np.float64)
    grown: Float64 = np.minimum(n, 6 * np.sqrt(n))
    return grown


def accumulator(numerics: Numerics) -> float:
    """u of the running sums in matrix products; what is cut off instead of rounded loses up to twice as much."""
    return roundoff("f64" if numerics.accumulate == "f64" else "f32")


def accumulation(numerics: Numerics, n: npt.ArrayLike, others: int) -> Float64:
    """What a running sum of n products may lose, relative to the sum of their sizes, and `others` roundings with it.

    Truncation leans one way, so that its steps add up; rounding to nearest, which may always take its place, does not.
    """
    u = accumulator(numerics)
    lost = growth(n) * u
    if numerics.accumulate == "f32_truncating":
        steps = np.ceil(np.asarray(n, np.float64) / numerics.accumulate_step)
        lost = np.maximum(lost, 2 * u * steps)
    summed: Float64 = lost + others * u
    return summed


def of_random_sign(squares: Float64, sizes: Float64) -> Float64:
    """A sum of errors of random sign that are at most 1 relative to their terms: sum t^2 and sum |t| of the terms."""
    grown: Float64 = np.minimum(6 * np.sqrt(np.maximum(squares, 0.0)), sizes)
    return grown


def rounded_once(ref: Float64, dtype: str) -> Bound:
    """A result that is exact but for its own rounding, perhaps by way of f32."""
    return bound(ref, U * np.abs(ref), dtype)
