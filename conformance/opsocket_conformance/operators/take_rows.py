"""Selection of rows: a copy, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    Request,
    TakeRowsSpec,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators.activations import DTYPES, ActivationCheck


@dataclass(frozen=True)
class TakeRows(ActivationCheck):
    """Bit-exact; rows out of order, and one twice; infinities, NaN, -0 and subnormals among them."""

    name: ClassVar[str] = "take_rows"
    width: int = 576
    strided: bool = False

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(TakeRowsSpec(self.width, self.dtype)))
        x = round_to(rng.standard_normal((self.t, self.width)), self.dtype)
        special = (np.inf, np.nan, -0.0, -np.inf, *round_to((2.0**-130, -(2.0**-20), 65504.0), self.dtype))
        x[1, : len(special)] = special[: self.width]
        rows = np.concatenate([[self.t - 1, 1, 1, 0], rng.integers(0, self.t, 3)])
        array = (bench.put_strided if self.strided else bench.put)("x", x, self.dtype)
        given = bench.out("out", (len(rows), self.width), self.dtype, strided=self.strided)
        y = bench.run(plan, array, bench.put("rows", rows), out=given)
        bench.check_padding("out", given, y, len(rows))
        bench.same_bits("y", y, bench.bits(array)[rows])


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case(TakeRows(7, dtype), 0, "smoke")
        for t, width in ((4, 7), (33, 96), (3, 4865), (70001, 8)):
            yield Case(TakeRows(t, dtype, width))
        yield Case(TakeRows(9, dtype, 136, strided=True))
