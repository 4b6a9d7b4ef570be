"""Root-mean-square norm, with or without a residual, over rows or heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    Request,
    RMSNormSpec,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES, ActivationCheck
from opsocket_conformance.operators.rounding import check_exactly_rounded, check_rounded_once
from opsocket_conformance.tolerance import (
    Bound,
    U,
    growth,
    rounded_once,
)
from opsocket_conformance.tolerance import (
    bound as bound_of,
)


@dataclass(frozen=True)
class RMSNorm(ActivationCheck):
    """width, heads (0: none), residual, eps: as in `RMSNormSpec`. x: "normal"; "small": eps decides; "outlier": one
    channel is 1000 times larger, a row is 0. into: the sum goes into an array that is given."""

    name: ClassVar[str] = "rms_norm"
    width: int = 576
    heads: int = 0
    residual: bool = False
    eps: float = 1e-5
    x: str = "normal"
    strided: bool = False
    into: bool = False

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        spec = RMSNormSpec(self.width, self.eps, self.dtype, self.residual, self.heads or None)
        plan = bench.plan(Request(spec))
        shape = (self.t, self.heads, self.width) if self.heads else (self.t, self.width)
        values = rng.standard_normal(shape) * {"small": 2e-3}.get(self.x, 1.0)
        if self.x == "outlier":
            values[..., 3] *= 1000
            values[-1] = 0.0
        x = round_to(values, self.dtype)
        weight = (1 + 0.3 * rng.standard_normal(self.width)).astype(np.float32)
        put = bench.put_strided if self.strided else bench.put
        args = [put("x", x, self.dtype), bench.put("weight", weight)]
        exact = x.astype(np.float64)
        if self.residual:
            residual = round_to(rng.standard_normal(shape) * 3, self.dtype)
            args.append(bench.put("residual", residual, self.dtype))
        given = bench.out("out", shape, self.dtype, strided=self.strided)
        sums = {"residual_out": bench.out("residual_out", shape, self.dtype)} if self.into else {}
        result = bench.run(plan, *args, out=given, **sums)
        if self.residual:
            y, added = result
            if self.into:
                bench.check_padding("residual_out", sums["residual_out"], added, self.t)
            total = exact + residual.astype(np.float64)
            bench.compare("x + residual", bench.get(added), total, rounded_once(total, self.dtype))
            check_exactly_rounded(bench, "x + residual", bench.get(added), total, self.dtype)
            exact = bench.get(added)
        else:
            y = result
        bench.check_padding("out", given, y, self.t)
        want = rms_norm(exact, weight.astype(np.float64), self.eps)
        bound = tolerance(want, self.width, self.dtype)
        bench.compare("y", bench.get(y), want, bound)
        check_rounded_once(bench, "y", bench.get(y), want, bound, self.dtype)
        larger = rms_norm(exact, weight.astype(np.float64), 1.1 * self.eps)
        bench.read_filter("eps +10%", bench.get(y), want, larger, bound)


@judge_only
def rms_norm(x: Float64, weight: Float64, eps: float) -> Float64:
    """x f64[..., width], weight f64[width]."""
    y: Float64 = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight
    return y


def tolerance(ref: Float64, width: int, dtype: str) -> Bound:
    """The mean of squares has no cancellation: relative g(K) u; its root halves that."""
    return bound_of(ref, (growth(width) / 2 + 5) * U * np.abs(ref), dtype)


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case(RMSNorm(7, dtype), 0, "smoke")
        yield Case(RMSNorm(7, dtype, residual=True), 0, "smoke")
        for x in ("small", "outlier"):
            yield Case(RMSNorm(7, dtype, x=x))
            yield Case(RMSNorm(5, dtype, 896, residual=True, x=x))
        yield Case(RMSNorm(7, dtype, 64, heads=5), 0, "smoke")
        yield Case(RMSNorm(7, dtype, 128, heads=3, strided=True))
        yield Case(RMSNorm(7, dtype, strided=True))
        yield Case(RMSNorm(3, dtype, 8192, eps=1e-6))
        for width, eps in ((320, 1e-6), (576, 1e-3), (64, 0.0)):
            yield Case(RMSNorm(5, dtype, width, eps=eps, x="small"))
            yield Case(RMSNorm(5, dtype, width, residual=True, eps=eps))
        yield Case(RMSNorm(5, dtype, residual=True, into=True))
        yield Case(RMSNorm(7, dtype, 896, residual=True, strided=True, into=True))
        yield Case(RMSNorm(3, dtype, 12289, residual=True, x="outlier", into=True))
        yield Case(RMSNorm(3, dtype, 5120))
        yield Case(RMSNorm(2, dtype, 12289, residual=True))
        yield Case(RMSNorm(67, dtype, 128, heads=2, x="outlier"))
        yield Case(RMSNorm(2, dtype, 1))
        yield Case(RMSNorm(0, dtype))
