"""How far a correct attention result may be from the oracle; the derivation is in docs/tolerance.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import roundoff
from opsocket_conformance.operators.attention.oracle import Problem, Rows, rows, token_major
from opsocket_conformance.tolerance import STEP, U_EXP, U_TANH, Bound, U, accumulation, bound, of_random_sign


@dataclass(frozen=True, eq=False)
class AttentionBounds:
    out: Bound
    lse: Bound


def tolerance(problem: Problem, out: Float64, lse: Float64) -> AttentionBounds:
    """E of an attention result, and of its LSE, whose references are `out` and `lse`."""
    inner, inner_lse = np.zeros_like(out), np.zeros_like(lse)
    for row in rows(problem):
        part, part_lse = _attention_rows(problem, row)
        where = slice(row.first_row, row.first_row + part.shape[2])
        inner[where], inner_lse[where] = token_major(part), token_major(part_lse)
    return AttentionBounds(bound(out, inner, problem.spec.out_dtype), bound(lse, inner_lse, "f32"))


def _attention_rows(problem: Problem, row: Rows) -> tuple[Float64, Float64]:
    """T of one request's outputs [Hkv, G, n, Dvo], and of their LSE [Hkv, G, n]."""
    numerics = problem.spec.numerics
    u_p, u_exp = roundoff(numerics.probabilities), U_EXP[numerics.exp]

    p = row.probabilities
    sink = np.divide(row.sink, row.total, out=np.zeros_like(row.sink), where=row.total > 0)
    ref = p @ row.values
    seen = np.isfinite(row.logits).sum(axis=-1, keepdims=True)
    size = np.abs(row.values)

    delta = np.expm1(np.minimum(_logit_error(problem, row), 50.0))
    exponent = np.where(sink > 0, np.log(np.maximum(row.sink, 1e-300)), 0.0)
    delta_sink = 2 * U * np.abs(exponent)
    if numerics.sinks != "f32":
        delta_sink = delta_sink + np.expm1(roundoff(numerics.sinks) * np.abs(exponent + row.top))

    # Moments of v - ref under p, the sink counting as a key whose value is 0.
    p_v, p_v2 = p @ size, p @ row.values**2
    spread = np.sqrt(np.maximum(p_v2 - ref * (p @ row.values) * 2 + ref**2 * (p.sum(-1, keepdims=True) + sink), 0))
    p2, p2_v2 = (p**2).sum(-1, keepdims=True), p**2 @ row.values**2
    spread2 = p2_v2 - 2 * ref * (p**2 @ row.values) + ref**2 * (p2 + sink**2)
    jitter = np.sqrt((p * delta**2).sum(-1, keepdims=True) + sink * delta_sink**2)

    underflow = np.minimum(row.weights, STEP[numerics.probabilities]) @ size
    underflow = np.divide(underflow, row.total, out=np.zeros_like(underflow), where=row.total > 0)
    sums = accumulation(numerics, seen, 3)
    inner = (
        u_p * np.abs(ref)
        + u_p * of_random_sign(p2_v2, p_v)
        + u_exp * of_random_sign(spread2, spread)
        + sums * (p_v + np.abs(ref))
        + jitter * spread
        + underflow
    )
    if problem.quantized and numerics.dequantized != "f32":
        inner = inner + roundoff(numerics.dequantized) * of_random_sign(p2_v2, p_v)
        inner = inner + p @ np.minimum(size, STEP[numerics.dequantized])

    shift = (p * delta).sum(-1, keepdims=True) + sink * delta_sink
    with np.errstate(divide="ignore"):
        log_total = np.where(row.total > 0, np.abs(np.log(row.total)), 0.0)
    # A running maximum rises 1 + ln(n) times in n keys of random order, and each rise scales the sum by one more exp.
    rises = 1 + np.log(np.maximum(seen, 1))
    inner_lse = shift + sums + rises * u_exp + 4 * U * (log_total + np.abs(row.top))
    return inner, np.where(row.total > 0, inner_lse, 0.0)[..., 0]


def _logit_error(problem: Problem, row: Rows) -> Float64:
    """ds [Hkv, G, n, m]: what the logit of each visible key, and the exponent made of it, may be off by."""
    spec = problem.spec
    dot = accumulation(spec.numerics, problem.q.shape[-1], 2) * row.magnitude + U * np.abs(row.raw)
    if problem.quantized and spec.numerics.dequantized != "f32":
        squares = spec.scale**2 * (row.queries**2 @ row.keys**2)
        small = np.minimum(np.abs(row.keys), STEP[spec.numerics.dequantized])
        dot = dot + roundoff(spec.numerics.dequantized) * of_random_sign(squares, row.magnitude)
        dot = dot + abs(spec.scale) * (np.abs(row.queries) @ small)
    if spec.softcap is not None:
        dot = dot * (1 - (row.capped / spec.softcap) ** 2) + U_TANH[spec.numerics.tanh] * spec.softcap
    final = np.where(np.isfinite(row.logits), row.logits, row.top)
    error = dot + 2 * U * np.abs(row.bias) + U * np.abs(final) + 2 * U * np.abs(final - row.top)
    return np.where(np.isfinite(row.logits), error, 0.0)
