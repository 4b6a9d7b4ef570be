"""The merge of partial attention results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    MergeStatesSpec,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.attention.tolerance import AttentionBounds
from opsocket_conformance.tolerance import (
    U_EXP,
    U,
    bound,
    growth,
)


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
        # Parts in f32 ask nothing more: attention may leave them so whatever the activations are.
        out = self.out or self.dtype
        kinds = {out} if self.dtype == "f32" else {out, self.dtype}
        return frozenset({"op:merge_states", *(f"dtype:{kind}" for kind in kinds)})

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
        bounds = tolerance(exact_outs, exact_lses, want, want_lse, out_dtype)
        bench.compare("out", bench.get(out), want, bounds.out)
        bench.compare("lse", bench.get(lse), want_lse, bounds.lse, biased=False)


@judge_only
def merge_states(outs: Float64, lses: Float64) -> tuple[Float64, Float64]:
    """outs f64[S, T, H, D], lses f64[S, T, H] -> out f64[T, H, D], lse f64[T, H]. A part of LSE -inf adds nothing."""
    top = lses.max(axis=0)
    safe = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(lses - safe)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        lse = np.where(total > 0, np.log(total) + safe, -np.inf)
    share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    used = np.where(share[..., None] > 0, outs, 0.0)
    return (share[..., None] * used).sum(axis=0), lse


def tolerance(outs: Float64, lses: Float64, ref: Float64, lse: Float64, out_dtype: str) -> AttentionBounds:
    """E of a merge of parts that are given exactly: outs f64[S, T, H, D], lses f64[S, T, H]."""
    safe = np.where(np.isfinite(lse), lse, 0.0)
    share = np.exp(lses - safe)
    shift = np.where(np.isfinite(lses), np.abs(lses - safe) + np.abs(safe), 0.0)
    relative = U_EXP["exact"] + 4 * U * shift + (growth(len(outs)) + 3) * U
    used = np.where(share[..., None] > 0, outs, 0.0)
    inner = (share[..., None] * relative[..., None] * (np.abs(used) + np.abs(ref))).sum(axis=0)
    inner_lse = (share * relative).sum(axis=0) + 4 * U * np.abs(safe)
    return AttentionBounds(bound(ref, inner, out_dtype), bound(lse, inner_lse, "f32"))


def cases() -> Iterator[Case]:
    for dtype, out in (("f32", ""), ("f32", "bf16"), ("f32", "f16"), ("bf16", ""), ("f16", ""), ("bf16", "f32")):
        for x in ("normal", "far", "empty"):
            yield Case(MergeStates(dtype=dtype, out=out, x=x), 0, "smoke" if not out else "default")
            yield Case(MergeStates(parts=17, heads=5, d=128, dtype=dtype, out=out, x=x))
        yield Case(MergeStates(parts=1, rows=1, heads=3, dtype=dtype, out=out))
