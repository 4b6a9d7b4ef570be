"""The gated activation of a decoder: silu(gate) * up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    Request,
    SiluMulSpec,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES, WIDTHS, ActivationCheck
from opsocket_conformance.operators.rounding import check_rounded_once
from opsocket_conformance.tolerance import (
    U_EXP,
    Bound,
    U,
)
from opsocket_conformance.tolerance import (
    bound as bound_of,
)


@dataclass(frozen=True)
class SiluMul(ActivationCheck):
    """x: "normal", or "wide": gates to +-100."""

    name: ClassVar[str] = "silu_mul"
    width: int = 536
    x: str = "normal"
    strided: bool = False

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(SiluMulSpec(self.width, self.dtype)))
        spread = 40.0 if self.x == "wide" else 2.0
        gate = round_to(np.clip(rng.standard_normal((self.t, self.width)) * spread, -100, 100), self.dtype)
        up = round_to(rng.standard_normal((self.t, self.width)), self.dtype)
        put = bench.put_strided if self.strided else bench.put
        given = bench.out("out", gate.shape, self.dtype, strided=self.strided)
        y = bench.run(plan, put("gate", gate, self.dtype), put("up", up, self.dtype), out=given)
        bench.check_padding("out", given, y, self.t)
        g, u = gate.astype(np.float64), up.astype(np.float64)
        want = silu_mul(g, u)
        bound = tolerance(g, u, want, self.dtype)
        bench.compare("y", bench.get(y), want, bound)
        check_rounded_once(bench, "y", bench.get(y), want, bound, self.dtype)


@judge_only
def silu_mul(gate: Float64, up: Float64) -> Float64:
    """silu(gate) * up, in the form that does not overflow."""
    decay = np.exp(-np.abs(gate))
    sigmoid = np.where(gate >= 0, 1, decay) / (1 + decay)
    y: Float64 = gate * sigmoid * up
    return y


def tolerance(gate: Float64, up: Float64, ref: Float64, dtype: str) -> Bound:
    """exp(-g) overflows f32 where sigmoid(g) falls below its normal range: that sigmoid may be 0."""
    flushed = np.abs(gate * up) * 2.0**-126
    return bound_of(ref, (U_EXP["exact"] + 4 * U) * np.abs(ref) + flushed, dtype)


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for width, t in WIDTHS:
            yield Case(SiluMul(t, dtype, width), 0, "smoke" if width == 536 else "default")
        yield Case(SiluMul(7, dtype, x="wide"))
        yield Case(SiluMul(7, dtype, strided=True))
        for t, width in ((67, 64), (3, 1031)):
            yield Case(SiluMul(t, dtype, width, "wide"))
            yield Case(SiluMul(t, dtype, width, strided=True))
