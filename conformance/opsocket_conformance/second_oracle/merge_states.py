"""The merge of attention over disjoint key sets, as ONNX primitives."""

from __future__ import annotations

from functools import cache

import numpy as np

from opsocket_conformance.second_oracle.answer import U_EXP, Float64, Part, U, near
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Writer
from opsocket_conformance.tolerance import growth


def merge_states(evaluate: Evaluator, outs: Float64, lses: Float64) -> tuple[Part, ...]:
    """outs f64[S, T, H, D], lses f64[S, T, H] -> out f64[T, H, D], lse f64[T, H]."""
    out, lse, share = evaluate(_graph(), outs=outs, lses=lses)
    whole = np.where(np.isfinite(lse), lse, 0.0)
    away = np.where(share > 0, np.abs(np.where(share > 0, lses, 0.0) - whole) + np.abs(whole), 0.0)
    relative = share * (U_EXP + 4 * U * away + (growth(len(outs)) + 3) * U)
    used = np.where(share[..., None] > 0, outs, 0.0)
    inner = (relative[..., None] * (np.abs(used) + np.abs(out))).sum(axis=0)
    return near("out", out, inner), near("lse", lse, relative.sum(axis=0) + 4 * U * np.abs(whole))


@cache
def _graph() -> Graph:
    """lse = log sum_s exp(lse_s); out = sum_s exp(lse_s - lse) out_s. A part of LSE -inf has share 0, and its output,
    whatever it holds, is not looked at."""
    g = Writer()
    outs, lses = g.input("outs", "f64"), g.input("lses", "f64")
    top = g("ReduceMax", lses, [0], keepdims=1)
    top = g("Where", g("IsInf", top, dtype="bool"), 0.0, top)
    total = g("ReduceSum", g("Exp", lses - top), [0], keepdims=1)
    lse = g("Log", total) + top
    share = g("Exp", lses - g("Where", g("IsInf", lse, dtype="bool"), 0.0, lse))
    parts = g("Where", (share > 0.0).unsqueeze(3), outs * share.unsqueeze(3), 0.0)
    return g.finish(out=g("ReduceSum", parts, [0], keepdims=0), lse=g("Squeeze", lse, [0]), share=share)
