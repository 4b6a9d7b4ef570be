"""The residual addition: rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    AddSpec,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES, WIDTHS, ActivationCheck
from opsocket_conformance.operators.rounding import check_exactly_rounded
from opsocket_conformance.tolerance import (
    rounded_once,
)


@dataclass(frozen=True)
class Add(ActivationCheck):
    """Rounded once."""

    name: ClassVar[str] = "add"
    width: int = 576

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(AddSpec(self.width, self.dtype)))
        a, b = (round_to(rng.standard_normal((self.t, self.width)) * size, self.dtype) for size in (1.0, 5.0))
        given = bench.out("out", a.shape, self.dtype)
        y = bench.run(plan, bench.put("a", a, self.dtype), bench.put("b", b, self.dtype), out=given)
        bench.check_padding("out", given, y, self.t)
        want = add(a.astype(np.float64), b.astype(np.float64))
        bench.compare("y", bench.get(y), want, rounded_once(want, self.dtype))
        check_exactly_rounded(bench, "y", bench.get(y), want, self.dtype)


@judge_only
def add(a: Float64, b: Float64) -> Float64:
    """a, b f64[T, width]."""
    return a + b


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for width, t in WIDTHS:
            yield Case(Add(t, dtype, width), 0, "smoke" if width == 536 else "default")
        for t, width in ((67, 64), (5, 1000), (19, 97)):
            yield Case(Add(t, dtype, width))
