"""What a case finds: results held against references, element by element, in the mean, and along single faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket_conformance.tolerance import Bound
from opsocket_conformance.verdicts import Filtered

Float64 = npt.NDArray[np.float64]
Host = npt.NDArray[Any]

_BIAS_NEEDS, _BIAS_LIMIT = 256, 0.15


def ratios(got: Float64, want: Float64, bound: Bound) -> Float64:
    """|out - ref| / E of every element; where the reference is not finite, 0 for the same value and infinity if not."""
    finite = np.isfinite(want)
    error = np.abs(np.where(finite, got - np.where(finite, want, 0), 0.0))
    ratio = error / (bound.total + bound.slack)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(finite, ratio, np.where(same, 0.0, np.inf))


def matched_filter(got: Float64, ref: Float64, perturbed: Float64, bound: Bound) -> Filtered | None:
    """How much of one fault is in a result: D = perturbed - ref, t = <got - ref, D> / <D, D>; None where D is 0.

    The noise that E allows in t: rounding errors of single elements are independent, those from within a row may all
    point one way. First dimension: rows.
    """
    difference = np.where(np.isfinite(ref) & np.isfinite(perturbed), perturbed - ref, 0.0)
    power = float((difference**2).sum())
    if power == 0:
        return None
    error = np.where(difference != 0, got - ref, 0.0)
    along = np.abs(difference).reshape(len(difference), -1)
    alone = bound.rounding.reshape(along.shape) * along
    together = ((bound.inner + bound.slack).reshape(along.shape) * along).sum(axis=1)
    noise = float(np.sqrt((alone**2).sum() + (together**2).sum())) / power
    return Filtered(float((error * difference).sum()) / power, noise)


@dataclass(eq=False)
class Findings:
    """failures: what is wrong, in words. ratio: the largest |out - ref| / E so far, over `elements` elements.
    filters: matched-filter readings by knob. notes: what could be observed here, and what could not."""

    failures: list[str] = field(default_factory=list)
    ratio: float | None = None
    elements: int = 0
    filters: dict[str, Filtered] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def fail(self, finding: str) -> None:
        if finding not in self.failures:
            self.failures.append(finding)

    def note(self, reading: str) -> None:
        """Say what was measured, or what this session does not let anyone see; it changes no verdict."""
        if reading not in self.notes:
            self.notes.append(reading)

    def compare(self, what: str, got: Float64, want: Float64, bound: Bound, *, biased: bool = True) -> None:
        """Every element within its bound; where the reference is not finite, the same value.

        biased: also look for errors that all lean one way, towards zero or from it, as truncation does.
        """
        if got.shape != want.shape:
            self.fail(f"{what}: shape {list(got.shape)}, wanted {list(want.shape)}")
            return
        if not want.size:
            return
        ratio = ratios(got, want, bound)
        worst = float(ratio.max())
        self.ratio = worst if self.ratio is None else max(self.ratio, worst)
        self.elements += want.size
        if worst > 1:
            at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
            where = ", ".join(map(str, map(int, at)))
            self.fail(
                f"{what}[{where}]: {got[at]:.9g}, wanted {want[at]:.9g} +- {bound.total[at]:.3g} (ratio {worst:.3g}); "
                f"{int((ratio > 1).sum())} of {ratio.size} elements are out of bounds"
            )
        elif biased:
            self._check_bias(what, got, want, bound)

    def _check_bias(self, what: str, got: Float64, want: Float64, bound: Bound) -> None:
        """The mean of sign(ref) (out - ref) / E over elements of distinct value is near 0 for rounding to nearest."""
        usable = (
            np.isfinite(want) & (want != 0) & (bound.slack < 0.1 * bound.total)
        )  # subnormals have errors of their own
        _, first = np.unique(want[usable], return_index=True)
        if len(first) < _BIAS_NEEDS:
            return
        lean = np.sign(want[usable]) * (got[usable] - want[usable]) / bound.total[usable]
        mean = float(lean[first].mean())
        if abs(mean) > _BIAS_LIMIT:
            way = "away from" if mean > 0 else "towards"
            self.fail(f"{what}: errors lean {way} zero, by {abs(mean):.2f} of E on average")

    def same(self, what: str, got: Host, want: Host) -> None:
        """Two host arrays are equal."""
        if got.shape != want.shape:
            self.fail(f"{what}: shape {list(got.shape)}, wanted {list(want.shape)}")
        elif not np.array_equal(got, want):
            at = tuple(int(i) for i in np.argwhere(got != want)[0])
            where, differing = ", ".join(map(str, at)), int((got != want).sum())
            self.fail(f"{what}[{where}]: {got[at]}, wanted {want[at]}; {differing} of {got.size} differ")

    def read_filter(self, knob: str, got: Float64, ref: Float64, perturbed: Float64, bound: Bound) -> None:
        """Estimate how much of one fault is in a result, and fail where that is much and the estimate is credited."""
        reading = matched_filter(got, ref, perturbed, bound)
        if reading is None:
            return
        self.filters[knob] = reading
        if reading.failed:
            self.fail(f"{knob}: {reading.t:+.2f} of this fault is in the result (noise {reading.noise:.2f})")
