"""What goes wrong in the norm, the rotary embedding, the gated activation, the residual add and row selection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import Float64, partly_written, read_as_dense, recomputed, rounded, truncated

Step = Callable[..., Any]


def _same(value: Any, *others: Any) -> Any:
    return value


_TAIL: Final = partly_written(lambda y: y[:, y.shape[1] // 32 * 32 :])


# ---- rms_norm


def _mean_square(x: Float64, spec: Any) -> Float64:
    square: Float64 = (x**2).mean(axis=-1, keepdims=True)
    return square


def rms_norm(
    *,
    given: Step = _same,
    square: Step = _mean_square,
    root: Step = lambda square, eps: 1 / np.sqrt(square + eps),
    scale: Step = lambda normal, weight, spec: normal * weight,
    joined: Step = lambda x, residual, dtype: rounded(x + residual, dtype),
    returned: Step = lambda total, x, residual: total,
    store: Step = _same,
) -> Hook:
    """The right norm in float64, each step of which can be replaced."""

    def compute(plan: Any, x: Float64, weight: Float64, residual: Float64 | None = None) -> Any:
        spec = plan.request.spec
        total = x if residual is None else joined(x, residual, spec.dtype)
        total = given(total)
        y = store(scale(total * root(square(total, spec), spec.eps), weight, spec), spec.dtype)
        return y if residual is None else (y, returned(total, x, residual))

    return recomputed(compute)


def _norm_fault(name: str, wrong: str, run: Hook | None = None, where: Step | None = None, **hooks: Any) -> Fault:
    hooks |= {} if where is None else {"where": where}
    return Fault("rms_norm", name=f"rms_norm: {name}", category="model", wrong=wrong, run=run, **hooks)


def _with_residual(request: Request) -> bool:
    return bool(getattr(request.spec, "residual", False))


def _mean_over_heads(x: Float64, spec: Any) -> Float64:
    axes = tuple(range(1, x.ndim))
    square: Float64 = (x**2).mean(axis=axes, keepdims=True)
    return square


_NORM: Final = (
    _norm_fault("eps outside the root", "1 / (rms + eps)", rms_norm(root=lambda m, eps: 1 / (np.sqrt(m) + eps))),
    _norm_fault("eps ignored", "1 / rms", rms_norm(root=lambda m, eps: 1 / np.sqrt(np.maximum(m, 1e-30)))),
    _norm_fault("eps fixed at 1e-6", "a constant in the kernel", rms_norm(root=lambda m, eps: 1 / np.sqrt(m + 1e-6))),
    _norm_fault("eps fixed at 1e-5", "a constant in the kernel", rms_norm(root=lambda m, eps: 1 / np.sqrt(m + 1e-5))),
    _norm_fault("eps 10 % off", "eps passed through f8", rms_norm(root=lambda m, eps: 1 / np.sqrt(m + 1.1 * eps))),
    _norm_fault(
        "sum instead of mean", "no division by the width", rms_norm(square=lambda x, s: (x**2).sum(-1)[..., None])
    ),
    _norm_fault(
        "mean over the padded width",
        "divided by the next power of two",
        rms_norm(square=lambda x, s: (x**2).sum(-1)[..., None] / 2 ** math.ceil(math.log2(s.width))),
    ),
    _norm_fault(
        "mean over width - 1",
        "Bessel's correction, as a variance has it",
        rms_norm(square=lambda x, s: (x**2).sum(-1)[..., None] / max(s.width - 1, 1)),
    ),
    _norm_fault(
        "mean subtracted",
        "a layer norm",
        rms_norm(square=lambda x, s: x.var(-1)[..., None], given=lambda x: x - x.mean(-1, keepdims=True)),
    ),
    _norm_fault(
        "squares beyond 4096 columns dropped",
        "a fixed number of elements per thread",
        rms_norm(square=lambda x, s: (x[..., :4096] ** 2).sum(-1)[..., None] / s.width),
    ),
    _norm_fault(
        "last columns left out of the mean",
        "a vector loop without its tail",
        rms_norm(square=lambda x, s: (x[..., : s.width // 128 * 128 or s.width] ** 2).sum(-1)[..., None] / s.width),
    ),
    _norm_fault("one mean for all heads", "the norm of the whole row", rms_norm(square=_mean_over_heads)),
    _norm_fault(
        "root with 12 bits",
        "the hardware's reciprocal root without a Newton step",
        rms_norm(root=lambda m, eps: 1 / np.sqrt(m + eps) * (1 + 2.0**-12 * np.sin(1e4 * m))),
    ),
    _norm_fault("weight + 1", "as Gemma has it", rms_norm(scale=lambda y, w, s: y * (1 + w))),
    _norm_fault("weight ignored", "y = x / rms", rms_norm(scale=lambda y, w, s: y)),
    _norm_fault(
        "weight in the activations' type",
        "rounded to it before the product",
        rms_norm(scale=lambda y, w, s: y * rounded(w, "bf16")),
    ),
    _norm_fault(
        "rounded before the weight",
        "x / rms goes to the activations' type first, as some models' own code does",
        rms_norm(scale=lambda y, w, s: rounded(y, s.dtype) * w),
    ),
    _norm_fault(
        "squares in the activations' type",
        "each square is rounded to it",
        rms_norm(square=lambda x, s: rounded(x**2, s.dtype if s.dtype != "f32" else "bf16").mean(-1)[..., None]),
    ),
    _norm_fault(
        "squares in f16",
        "squares of large values overflow",
        rms_norm(square=lambda x, s: rounded(x**2, "f16").mean(-1)[..., None]),
    ),
    _norm_fault("truncating store", "the upper half of the f32", rms_norm(store=truncated)),
    _norm_fault("strided rows read as dense", "the token stride is taken for the width", read_as_dense),
    _norm_fault(
        "residual_out not written",
        "the sum goes to an array of the kernel's own",
        lambda plan, args, kwargs: plan.right(*args, **{**kwargs, "residual_out": None}),
        where=_with_residual,
    ),
    _norm_fault(
        "residual from the unrounded sum",
        "the norm sees x + residual before it is rounded",
        rms_norm(joined=lambda x, r, dtype: x + r),
        where=_with_residual,
    ),
    _norm_fault(
        "residual not added",
        "the returned sum is x alone",
        rms_norm(returned=lambda total, x, r: x),
        where=_with_residual,
    ),
    _norm_fault(
        "residual not updated",
        "the returned sum is the residual as it came",
        rms_norm(returned=lambda total, x, r: r),
        where=_with_residual,
    ),
    _norm_fault(
        "residual after the norm",
        "y = norm(x) + residual",
        rms_norm(joined=lambda x, r, dtype: x, returned=lambda total, x, r: x + r),
        where=_with_residual,
    ),
    _norm_fault(
        "residual sum truncated",
        "cut off where it should be rounded",
        rms_norm(returned=lambda total, x, r: truncated(x + r, "bf16")),
        where=_with_residual,
    ),
)


# ---- silu_mul, add, take_rows


def _sigmoid(gate: Float64) -> Float64:
    decay = np.exp(-np.abs(gate))
    share: Float64 = np.where(gate >= 0, 1.0, decay) / (1 + decay)
    return share


def silu_mul(
    *, activate: Step = lambda gate: gate * _sigmoid(gate), between: Step = _same, store: Step = _same
) -> Hook:
    """The right gated activation in float64, each step of which can be replaced."""

    def compute(plan: Any, gate: Float64, up: Float64) -> Float64:
        dtype = plan.request.spec.dtype
        return np.asarray(store(between(activate(gate), dtype) * up, dtype))

    return recomputed(compute)


def _gelu(gate: Float64) -> Float64:
    y: Float64 = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return y


def _by_exp_of_gate(gate: Float64) -> Float64:
    large = np.exp(gate.astype(np.float32)).astype(np.float64)
    y: Float64 = gate * (large / (1 + large))
    return y


def _silu_fault(name: str, wrong: str, run: Hook) -> Fault:
    return Fault("silu_mul", name=f"silu_mul: {name}", category="model", wrong=wrong, run=run)


_SILU: Final = (
    _silu_fault("tanh-GELU", "another activation", silu_mul(activate=_gelu)),
    _silu_fault("quick GELU", "sigmoid(1.702 g)", silu_mul(activate=lambda g: g * _sigmoid(1.702 * g))),
    _silu_fault(
        "sigmoid of 1.01 g",
        "a base-2 exponential with a short constant",
        silu_mul(activate=lambda g: g * _sigmoid(1.01 * g)),
    ),
    _silu_fault("ReLU", "the exponential is skipped below 0", silu_mul(activate=lambda g: np.maximum(g, 0.0))),
    _silu_fault("sigmoid alone", "not multiplied with the gate", silu_mul(activate=_sigmoid)),
    _silu_fault("exp overflows", "e^g / (1 + e^g): infinity over infinity", silu_mul(activate=_by_exp_of_gate)),
    _silu_fault(
        "clipped at 20",
        "gates are clamped so that exp stays finite",
        silu_mul(activate=lambda g: np.minimum(g, 20) * _sigmoid(g)),
    ),
    _silu_fault(
        "flushed below -10",
        "a shortcut for small sigmoids",
        silu_mul(activate=lambda g: np.where(g < -10, 0.0, g * _sigmoid(g))),
    ),
    _silu_fault(
        "gate and up swapped",
        "the halves of the projection in the wrong order",
        recomputed(lambda plan, gate, up: up * _sigmoid(up) * gate),
    ),
    _silu_fault("rounded before up", "silu(gate) goes to the activations' type first", silu_mul(between=rounded)),
    _silu_fault("silu in f16", "half-precision exponentials", silu_mul(between=lambda y, dtype: rounded(y, "f16"))),
    _silu_fault(
        "exp with 8 bits", "a table", silu_mul(activate=lambda g: g * _sigmoid(g) * (1 + 2.0**-8 * np.sin(50 * g)))
    ),
    _silu_fault(
        "exp with 12 bits",
        "the hardware's exponential",
        silu_mul(activate=lambda g: g * _sigmoid(g) * (1 + 2.0**-12 * np.sin(50 * g))),
    ),
    _silu_fault("truncating store", "the upper half of the f32", silu_mul(store=truncated)),
    _silu_fault("last columns not written", "a vector loop of 32 without its tail", _TAIL),
    _silu_fault("strided rows read as dense", "the token stride is taken for the width", read_as_dense),
)


# ---- add, take_rows


def add(*, total: Step = np.add, store: Step = _same) -> Hook:
    """The right sum in float64, each step of which can be replaced."""
    return recomputed(lambda plan, a, b: np.asarray(store(total(a, b), plan.request.spec.dtype)))


def _away_from_zero(values: Float64, dtype: str) -> Float64:
    """Ties go away from zero, all else to the nearest."""
    down = truncated(values, dtype)
    up = down + (down - truncated(down * (1 - 2.0**-12), dtype))
    return np.where((np.abs(values - down) >= np.abs(up - values)) & (values != down), up, down)


def _add_fault(name: str, wrong: str, run: Hook) -> Fault:
    return Fault("add", name=f"add: {name}", category="model", wrong=wrong, run=run)


_ADD: Final = (
    _add_fault("only a", "b is never read", add(total=lambda a, b: a)),
    _add_fault("a - b", "the sign of b", add(total=lambda a, b: a - b)),
    _add_fault("sum in f16", "half-precision registers", add(store=lambda y, dtype: rounded(y, "f16"))),
    _add_fault("sum in bf16", "stored through bf16", add(store=lambda y, dtype: rounded(y, "bf16"))),
    _add_fault(
        "operands in bf16", "both are rounded before", add(total=lambda a, b: rounded(a, "bf16") + rounded(b, "bf16"))
    ),
    _add_fault("truncating store", "the upper half of the f32", add(store=truncated)),
    _add_fault("ties away from zero", "rounded by adding half", add(store=_away_from_zero)),
    _add_fault("b of the row before", "b's row index is one off", add(total=lambda a, b: a + np.roll(b, 1, axis=0))),
    _add_fault("rows beyond 2 not written", "a launch for two rows", partly_written(lambda y: y[2:])),
    _add_fault("last columns not written", "a vector loop of 32 without its tail", _TAIL),
)


def _take(pick: Step) -> Hook:
    """The right rows, picked otherwise: pick(x, rows)."""
    return recomputed(lambda plan, x, rows: np.asarray(pick(x, rows)))


def _take_fault(name: str, wrong: str, run: Hook) -> Fault:
    return Fault("take_rows", name=f"take_rows: {name}", category="model", wrong=wrong, run=run)


_TAKE: Final = (
    _take_fault(
        "clamped before the last row", "min(row, T - 2)", _take(lambda x, rows: x[np.minimum(rows, max(len(x) - 2, 0))])
    ),
    _take_fault("row + 1", "counted from 1", _take(lambda x, rows: x[(rows + 1) % len(x)])),
    _take_fault("in the order of x", "sorted for better reads", _take(lambda x, rows: x[np.sort(rows)])),
    _take_fault(
        "the first rows", "the row numbers are never read", _take(lambda x, rows: x[np.arange(len(rows)) % len(x)])
    ),
    _take_fault(
        "second copy of a row left out", "a scatter where a gather was wanted", partly_written(lambda y: y[2:3])
    ),
    _take_fault(
        "NaN becomes 0",
        "an assignment by way of a multiplication with a mask",
        _take(lambda x, rows: np.nan_to_num(x[rows], nan=0.0, posinf=np.inf, neginf=-np.inf)),
    ),
    _take_fault(
        "infinities become the largest number",
        "a saturating conversion",
        _take(lambda x, rows: np.where(np.isinf(x[rows]), 3e4, x[rows])),
    ),
    _take_fault("-0 becomes 0", "an addition of 0", _take(lambda x, rows: x[rows] + 0.0)),
    _take_fault(
        "subnormals become 0",
        "a conversion that flushes",
        _take(lambda x, rows: np.where(np.abs(x[rows]) < 2.0**-14, 0.0, x[rows])),
    ),
    _take_fault(
        "copied through bf16", "the lower half of each f32 is lost", _take(lambda x, rows: rounded(x[rows], "bf16"))
    ),
    _take_fault(
        "last columns not written",
        "a vector loop of 128 without its tail",
        partly_written(lambda y: y[:, y.shape[1] // 128 * 128 :]),
    ),
)

FAULTS: Final[tuple[Fault, ...]] = _NORM + _SILU + _ADD + _TAKE
