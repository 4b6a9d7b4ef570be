"""The greedy token: index of the largest logit, ties to the lowest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    ArgmaxSpec,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES


@dataclass(frozen=True)
class Argmax(Check):
    """b rows of v logits. x: "normal"; "ties": several largest; "infinite": -inf among them, one row all -inf;
    "late": the largest among the last, in the last row the very last; "close": the largest by one step of the type."""

    name: ClassVar[str] = "argmax"
    shown: ClassVar[tuple[str, ...]] = ("b", "v", "dtype", "x")

    b: int = 5
    v: int = 1009
    dtype: str = "bf16"
    x: str = "normal"

    @property
    def operator(self) -> str:
        return "argmax"

    def features(self) -> frozenset[str]:
        return frozenset({"op:argmax", f"dtype:{self.dtype}"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(ArgmaxSpec(self.v, self.dtype)))
        logits = round_to(rng.standard_normal((self.b, self.v)), self.dtype)
        if self.x == "ties":
            logits[:, rng.choice(self.v, 7, replace=False)] = 9.0
            logits[0] = 2.0
        if self.x == "infinite":
            logits[:, rng.choice(self.v, self.v // 2, replace=False)] = -np.inf
            logits[1] = -np.inf
            logits[2 % self.b, self.v - 1] = np.inf
        if self.x in ("late", "close"):
            place = rng.integers(self.v - self.v // 8 - 1, self.v, self.b)
            place[-1] = self.v - 1
            if self.x == "close":
                logits[np.arange(self.b), place // 2] = 8.0
            step = {"f32": 2.0**-20, "f16": 2.0**-7, "bf16": 2.0**-4}[self.dtype]
            logits[np.arange(self.b), place] = 8.0 + (step if self.x == "close" else 1.0)
        given = bench.out("out", (self.b,), "i64")
        ids = bench.run(plan, bench.put("logits", logits, self.dtype), out=given)
        bench.check_padding("out", given, ids, self.b)
        bench.same("ids", bench.get(ids).astype(np.int64), argmax(logits.astype(np.float64)))


Int64 = npt.NDArray[np.int64]


@judge_only
def argmax(logits: Float64) -> Int64:
    """Index of the largest of each row, ties to the lowest."""
    ids: Int64 = np.argmax(logits, axis=-1).astype(np.int64)
    return ids


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for x in ("normal", "ties", "infinite"):
            yield Case(Argmax(dtype=dtype, x=x), 0, "smoke" if x == "ties" else "default")
        yield Case(Argmax(2, 49152, dtype))
        for b, v in ((5, 1009), (3, 70001), (67, 33), (2, 8192), (9, 517)):
            for x in ("late", "close", "infinite"):
                yield Case(Argmax(b, v, dtype, x))
        yield Case(Argmax(1, 1, dtype))
