"""The merge of partial attention results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import MergeStatesSpec, Request
from opsocket_conformance import tolerance
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.floats import round_to
from opsocket_conformance.oracle.attention import merge_states


@dataclass(frozen=True)
class MergeStates(Check):
    """parts, rows, heads, d: S, T, H, D. dtype, out: of the parts' outputs, of the result. x: "normal"; "far": LSEs
    hundreds apart; "empty": some parts, and some rows in all parts, saw no key, and hold NaN."""

    name: ClassVar[str] = "merge_states"
    shown: ClassVar[tuple[str, ...]] = ("parts", "rows", "heads", "d", "dtype", "x")

    parts: int = 3
    rows: int = 11
    heads: int = 14
    d: int = 64
    dtype: str = "f32"
    out: str = ""
    x: str = "normal"

    @property
    def operator(self) -> str:
        return "merge_states"

    def features(self) -> frozenset[str]:
        return frozenset({"op:merge_states", f"dtype:{self.out or self.dtype}"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        out_dtype = self.out or self.dtype
        plan = bench.plan(Request(MergeStatesSpec(self.heads, self.d, self.dtype, out_dtype)))
        shape = (self.parts, self.rows, self.heads)
        outs = round_to(rng.standard_normal((*shape, self.d)), self.dtype)
        lses = rng.normal(0.0, 200.0 if self.x == "far" else 2.0, shape).astype(np.float32)
        if self.x == "empty":
            empty = rng.random(shape) < 0.4
            empty[:, ::5] = True
            lses[empty], outs[empty] = -np.inf, np.nan
        given = bench.out("out", (self.rows, self.heads, self.d), out_dtype)
        out, lse = bench.run(plan, bench.put("outs", outs, self.dtype), bench.put("lses", lses, "f32"), out=given)
        bench.check_padding("out", given, out, self.rows)
        exact_outs, exact_lses = outs.astype(np.float64), lses.astype(np.float64)
        want, want_lse = merge_states(exact_outs, exact_lses)
        bounds = tolerance.merge_states(exact_outs, exact_lses, want, want_lse, out_dtype)
        bench.compare("out", bench.get(out), want, bounds.out)
        bench.compare("lse", bench.get(lse), want_lse, bounds.lse, biased=False)
