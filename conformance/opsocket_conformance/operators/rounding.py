"""What E cannot see in 16 bits: that a result was rounded once, to nearest, from what f32 gave.

A kernel whose f32 value lies within 2T of the reference, and which rounds it to nearest, returns something between the
roundings of ref - 2T and ref + 2T, because rounding is monotonic. E allows twice that; a store that cuts off, or a
value that passed through a 16-bit type on its way, stays within E and outside of this.
"""

from __future__ import annotations

import numpy as np

from opsocket_conformance.bench import Bench
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.tolerance import Bound


def check_rounded_once(bench: Bench, what: str, got: Float64, ref: Float64, bound: Bound, dtype: str) -> None:
    """For operators whose contract is: computed in f32, rounded once. bound: of `ref`, f32 results are left to it."""
    if dtype == "f32" or got.shape != ref.shape:
        return
    margin = bound.inner + bound.slack
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = (round_to(edge, dtype).astype(np.float64) for edge in (ref - margin, ref + margin))
        wrong = np.isfinite(ref) & ~((low <= got) & (got <= high))
    _report(bench, what, got, low, high, wrong, dtype)


def check_exactly_rounded(bench: Bench, what: str, got: Float64, exact: Float64, dtype: str) -> None:
    """The exact value to nearest, ties to even, perhaps by way of f32 to nearest: two candidates, mostly the same."""
    if got.shape != exact.shape:
        return
    by_f32 = round_to(exact, dtype).astype(np.float64)
    directly = by_f32 if dtype == "f32" else _nearest(exact, by_f32, dtype)
    low, high = np.minimum(by_f32, directly), np.maximum(by_f32, directly)
    _report(bench, what, got, low, high, np.isfinite(exact) & (got != by_f32) & (got != directly), dtype)


def _nearest(exact: Float64, by_f32: Float64, dtype: str) -> Float64:
    """The nearer of a rounding by way of f32 and the values next to it."""
    best = by_f32
    for nudge in (1 - 2.0**-12, 1 + 2.0**-12):
        other = round_to(exact * nudge, dtype).astype(np.float64)
        best = np.where(np.abs(other - exact) < np.abs(best - exact), other, best)
    return best


def _report(bench: Bench, what: str, got: Float64, low: Float64, high: Float64, wrong: np.ndarray, dtype: str) -> None:
    if not wrong.any():
        return
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = ", ".join(map(str, at))
    bench.fail(
        f"{what}[{where}]: {got[at]:.9g}, where rounding once to {dtype} gives {low[at]:.9g} to {high[at]:.9g}; "
        f"{int(wrong.sum())} of {wrong.size} elements were not rounded so"
    )
