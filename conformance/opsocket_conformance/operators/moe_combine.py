"""Each token's weighted sum of its experts' rows: in f32, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    MoECombineSpec,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to, roundoff
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES, ActivationCheck
from opsocket_conformance.operators.rounding import check_rounded_once
from opsocket_conformance.tolerance import (
    Bound,
    U,
    growth,
)
from opsocket_conformance.tolerance import (
    bound as bound_of,
)

Int64 = npt.NDArray[np.int64]
_LEFT = 5
"""Rows that no slot names: they hold NaN."""


@dataclass(frozen=True)
class MoECombine(ActivationCheck):
    """t tokens of k choices each. x: "normal": weights of either sign; "cancel": each second choice takes away what the
    one before it gave, but for a little; "tiny": all weights but one below the type's roundoff; "zeros": weights of 0,
    all of them in the last token; "special": infinities and NaN in rows. slots: "once": a permutation, as `moe_sort`
    gives it; "shared": any, of fewer rows than choices."""

    name: ClassVar[str] = "moe_combine"
    width: int = 576
    k: int = 8
    x: str = "normal"
    slots: str = "once"
    strided: bool = False

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(MoECombineSpec(self.width, self.k, self.dtype)))
        slots, used = self._slots(rng)
        weights = self._weights(rng)
        x = np.full((used + _LEFT, self.width), np.nan, np.float32)
        x[:used] = round_to(rng.standard_normal((used, self.width)), self.dtype)
        if self.x == "cancel":
            near = x[slots[:, 0 : self.k // 2 * 2 : 2]] * (1 + 0.02 * rng.standard_normal((1, 1, self.width)))
            x[slots[:, 1::2]] = round_to(near, self.dtype)
        if self.x == "special":
            x[slots[:1, -1], : self.width // 2 + 1] = np.inf
            x[slots[-1:, 0], self.width // 2 :] = np.nan
        put = bench.put_strided if self.strided else bench.put
        given = bench.out("out", (self.t, self.width), self.dtype, strided=self.strided)
        arrays = put("x", x, self.dtype), bench.put("slots", slots), bench.put("weights", weights)
        y = bench.run(plan, *arrays, out=given)
        bench.check_padding("out", given, y, self.t)
        exact, w = x.astype(np.float64), weights.astype(np.float64)
        want = moe_combine(exact, slots, w)
        bound = tolerance(exact, slots, w, want, self.dtype)
        bench.compare("y", bench.get(y), want, bound)
        check_rounded_once(bench, "y", bench.get(y), want, bound, self.dtype)

    def _slots(self, rng: np.random.Generator) -> tuple[Int64, int]:
        """[T, k], and how many rows they name from."""
        count = self.t * self.k
        if self.slots == "shared":
            used = count // 2 + 1
            return rng.integers(0, used, (self.t, self.k)), used
        return rng.permutation(count).reshape(self.t, self.k), count

    def _weights(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        weights = rng.standard_normal((self.t, self.k))
        if self.x == "cancel":
            weights[:, 1::2] = -weights[:, 0 : self.k // 2 * 2 : 2]
        if self.x == "tiny":
            large = rng.integers(0, self.k, (self.t, 1)) == np.arange(self.k)
            weights = np.where(large, 1.0, weights * roundoff(self.dtype) / 2)
        if self.x == "zeros":
            weights[rng.random(weights.shape) < 0.4] = 0.0
            weights[-1:] = 0.0
        return weights.astype(np.float32)


@judge_only
def moe_combine(x: Float64, slots: Int64, weights: Float64) -> Float64:
    """x f64[C, width], slots i64[T, top_k], weights f64[T, top_k] -> y f64[T, width]."""
    y: Float64 = (weights[..., None] * x[slots]).sum(axis=1)
    return y


def tolerance(x: Float64, slots: Int64, weights: Float64, ref: Float64, dtype: str) -> Bound:
    """Products in f32, fused or not, and their sum."""
    sizes = (np.abs(weights)[..., None] * np.abs(x[slots])).sum(axis=1)
    return bound_of(ref, (growth(weights.shape[1]) + 1) * U * sizes, dtype)


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case(MoECombine(7, dtype), 0, "smoke")
        for t, width, k in ((0, 33, 2), (1, 1, 1), (5, 7, 2), (9, 96, 1), (67, 64, 8), (3, 4865, 2), (513, 97, 4)):
            yield Case(MoECombine(t, dtype, width, k))
        for x in ("cancel", "tiny", "zeros", "special"):
            for t, width, k in ((7, 576, 8), (19, 97, 2)):
                yield Case(MoECombine(t, dtype, width, k, x))
        for t, width, k in ((7, 576, 8), (67, 7, 2), (9, 4865, 1)):
            yield Case(MoECombine(t, dtype, width, k, slots="shared"))
        yield Case(MoECombine(9, dtype, 136, 2, strided=True))
        yield Case(MoECombine(7, dtype, 576, 8, "cancel", "shared", strided=True))
