"""How far a correct result may be from the oracle: E = 2 (u_out |ref| + T) for every element, T derived from the
request's declared numerics. Never tuned, never keyed on a backend. The derivation is in docs/tolerance.md.

Notation: u is a unit roundoff (2^-24 for f32, 2^-11 f16, 2^-8 bf16), g(n) the growth of n accumulated roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsocket.operators import Numerics
from opsocket_conformance.floats import roundoff, tiny
from opsocket_conformance.oracle.attention import Problem, Rows, rows, token_major

Float64 = npt.NDArray[np.float64]

U = roundoff("f32")
U_EXP = {"exact": 4 * U, "approx": 2.0**-12}
U_TANH = {"exact": 4 * U, "approx": 2.0**-12}
TIE = 4 * U
"""How near to a tie, relative to the quotient x / s, a code may fall either way."""
_PROBABILITY_STEP = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-25}
"""What a probability loses at most, in absolute terms, below its type's normal range."""


@dataclass(frozen=True, eq=False)
class Bound:
    """E of every element, in its two parts: `rounding` = 2 u_out |ref|, independent from element to element, and
    `inner` = 2 T, which elements of one row may share. `slack`: what underflow may cost."""

    rounding: Float64
    inner: Float64
    slack: float

    @property
    def total(self) -> Float64:
        return self.rounding + self.inner


def bound(ref: Float64, inner: npt.ArrayLike, out_dtype: str, extra_slack: float = 0.0) -> Bound:
    """E from a reference, T and the type of the output. No output is wider than f32."""
    ref = np.asarray(ref, np.float64)
    magnitude = np.where(np.isfinite(ref), np.abs(ref), 0.0)
    inner = np.broadcast_to(2 * np.asarray(inner, np.float64), ref.shape)
    return Bound(2 * roundoff(out_dtype) * magnitude, inner, tiny(out_dtype) + extra_slack)


def growth(n: npt.ArrayLike) -> Float64:
    """g(n) = min(n, 6 sqrt(n)): what n roundings of random sign add up to but for one case in 10^7."""
    n = np.asarray(n, np.float64)
    grown: Float64 = np.minimum(n, 6 * np.sqrt(n))
    return grown


def accumulator(numerics: Numerics) -> float:
    """u of the running sums in matrix products."""
    return roundoff(numerics.accumulate)


@dataclass(frozen=True, eq=False)
class AttentionBounds:
    out: Bound
    lse: Bound


def attention(problem: Problem, out: Float64, lse: Float64) -> AttentionBounds:
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
    u_acc, u_p = accumulator(numerics), roundoff(numerics.probabilities)
    u_exp = U_EXP[numerics.exp]

    p = row.probabilities
    sink = np.divide(row.sink, row.total, out=np.zeros_like(row.sink), where=row.total > 0)
    ref = p @ row.values
    seen = np.isfinite(row.logits).sum(axis=-1, keepdims=True)
    size = np.abs(row.values)

    delta = np.expm1(np.minimum(_logit_error(problem, row), 50.0))
    delta_sink = 2 * U * np.abs(np.where(sink > 0, np.log(np.maximum(row.sink, 1e-300)), 0.0))

    # Moments of v - ref under p, the sink counting as a key whose value is 0.
    p_v, p_v2 = p @ size, p @ row.values**2
    spread = np.sqrt(np.maximum(p_v2 - ref * (p @ row.values) * 2 + ref**2 * (p.sum(-1, keepdims=True) + sink), 0))
    p2, p2_v2 = (p**2).sum(-1, keepdims=True), p**2 @ row.values**2
    spread2 = np.sqrt(np.maximum(p2_v2 - 2 * ref * (p**2 @ row.values) + ref**2 * (p2 + sink**2), 0))
    jitter = np.sqrt((p * delta**2).sum(-1, keepdims=True) + sink * delta_sink**2)

    underflow = np.minimum(row.weights, _PROBABILITY_STEP[numerics.probabilities]) @ size
    underflow = np.divide(underflow, row.total, out=np.zeros_like(underflow), where=row.total > 0)
    inner = (
        u_p * np.abs(ref)
        + u_p * np.minimum(6 * np.sqrt(p2_v2), p_v)
        + u_exp * np.minimum(6 * spread2, spread)
        + (growth(seen) + 3) * u_acc * (p_v + np.abs(ref))
        + jitter * spread
        + underflow
    )

    shift = (p * delta).sum(-1, keepdims=True) + sink * delta_sink
    with np.errstate(divide="ignore"):
        log_total = np.where(row.total > 0, np.abs(np.log(row.total)), 0.0)
    # A running maximum rises 1 + ln(n) times in n keys of random order, and each rise scales the sum by one more exp.
    rises = 1 + np.log(np.maximum(seen, 1))
    inner_lse = shift + (growth(seen) + 3) * u_acc + rises * u_exp + 4 * U * (log_total + np.abs(row.top))
    return inner, np.where(row.total > 0, inner_lse, 0.0)[..., 0]


def _logit_error(problem: Problem, row: Rows) -> Float64:
    """ds [Hkv, G, n, m]: what the logit of each visible key, and the exponent made of it, may be off by."""
    spec = problem.spec
    dot = (growth(problem.q.shape[-1]) + 2) * accumulator(spec.numerics) * row.magnitude + U * np.abs(row.raw)
    if spec.softcap is not None:
        dot = dot * (1 - (row.capped / spec.softcap) ** 2) + U_TANH[spec.numerics.tanh] * spec.softcap
    final = np.where(np.isfinite(row.logits), row.logits, row.top)
    error = dot + 2 * U * np.abs(row.bias) + U * np.abs(final) + 2 * U * np.abs(final - row.top)
    return np.where(np.isfinite(row.logits), error, 0.0)


def merge_states(outs: Float64, lses: Float64, ref: Float64, lse: Float64, out_dtype: str) -> AttentionBounds:
    """E of a merge of parts that are given exactly: outs f64[S, T, H, D], lses f64[S, T, H]."""
    safe = np.where(np.isfinite(lse), lse, 0.0)
    share = np.exp(lses - safe)
    shift = np.where(np.isfinite(lses), np.abs(lses - safe) + np.abs(safe), 0.0)
    relative = U_EXP["exact"] + 4 * U * shift + (growth(len(outs)) + 3) * U
    used = np.where(share[..., None] > 0, outs, 0.0)
    inner = (share[..., None] * relative[..., None] * (np.abs(used) + np.abs(ref))).sum(axis=0)
    inner_lse = (share * relative).sum(axis=0) + 4 * U * np.abs(safe)
    return AttentionBounds(bound(ref, inner, out_dtype), bound(lse, inner_lse, "f32"))


def matmul(
    x: Float64, magnitude: Float64, ref: Float64, out_dtype: str, numerics: Numerics, bias: Float64 | None = None
) -> Bound:
    """E of y = x W^T + b. magnitude f64[N, K]: the size of what a kernel may have to add up for each weight, which is
    |w| for a float, and |scale| (|code| + |zero|) where codes and zero points may be summed apart."""
    absolute = np.abs(x) @ magnitude.T
    inner = (growth(x.shape[-1]) + 3) * accumulator(numerics) * absolute
    if bias is not None:
        inner = inner + U * np.abs(bias)
    return bound(ref, inner, out_dtype)


def integer_matmul(
    flips: Float64, product: Float64, ref: Float64, out_dtype: str, bias: Float64 | None = None
) -> Bound:
    """E of y = s_x s_w (codes_x . codes_w) + b, whose integer part is exact. flips f64[M, N]: the sum of s_x |w| over
    activations so near a tie that their code may be one off. product: y without b."""
    inner = 4 * U * np.abs(product) + flips / 2
    if bias is not None:
        inner = inner + U * np.abs(bias)
    return bound(ref, inner, out_dtype)


def rms_norm(ref: Float64, width: int, dtype: str) -> Bound:
    """The mean of squares has no cancellation: relative g(K) u; its root halves that."""
    return bound(ref, (growth(width) / 2 + 5) * U * np.abs(ref), dtype)


def rotation(ref: Float64, radius: Float64, angle: Float64, dtype: str) -> Bound:
    """Two products and a sum in f32, cos and sin within 2 units in the last place; angles in f64. radius: |a| + |b|."""
    return bound(ref, (6 * U + 2.0**-50 * np.abs(angle)) * radius, dtype)


def silu_mul(gate: Float64, up: Float64, ref: Float64, dtype: str) -> Bound:
    """exp(-g) overflows f32 where sigmoid(g) falls below its normal range: that sigmoid may be 0."""
    flushed = np.abs(gate * up) * 2.0**-126
    return bound(ref, (U_EXP["exact"] + 4 * U) * np.abs(ref) + flushed, dtype)


def softmax(ref: Float64, logits: Float64) -> Bound:
    """f32 probabilities over the last dimension of `logits`."""
    reach = np.abs(logits).max(axis=-1, keepdims=True, initial=0.0)
    relative = U_EXP["exact"] + (growth(logits.shape[-1]) + 3) * U + 4 * U * reach
    return bound(ref, relative * ref, "f32")


def rounded_once(ref: Float64, dtype: str) -> Bound:
    """A result that is exact but for its own rounding, perhaps by way of f32."""
    return bound(ref, U * np.abs(ref), dtype)
