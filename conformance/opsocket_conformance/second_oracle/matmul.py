"""Products of matrices, and the quantizer of int8 activations, as ONNX primitives."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from opsocket_conformance.second_oracle.answer import Float64, Part, U, near
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Tensor, Writer
from opsocket_conformance.second_oracle.rounding import FRACTION_BITS, nearest_integers
from opsocket_conformance.tolerance import growth


def matmul(evaluate: Evaluator, x: Float64, weight: Float64, bias: Float64 | None = None) -> tuple[Part, ...]:
    """x f64[M, K], weight f64[N, K], bias f64[N] -> y f64[M, N]."""
    zero = np.zeros(len(weight)) if bias is None else bias
    (y,) = evaluate(_product(), x=x, weight=weight, bias=zero)
    return (near("y", y, (growth(x.shape[-1]) + 3) * U * (np.abs(x) @ np.abs(weight).T) + U * np.abs(zero)),)


@cache
def _product() -> Graph:
    g = Writer()
    x, weight, bias = g.input("x", "f64"), g.input("weight", "f64"), g.input("bias", "f64")
    return g.finish(y=g("MatMul", x, g("Transpose", weight, perm=[1, 0])) + bias)


def quantize_activation(evaluate: Evaluator, x: npt.NDArray[np.float32]) -> tuple[Part, ...]:
    """x f32[M, K] -> codes f64[M, K], scale f32[M], near_tie bool[M, K], all of them exactly."""
    codes, scale, near_tie = evaluate(_quantizer(), x=x)
    return Part("codes", codes), Part("scale", scale), Part("near_tie", near_tie)


def int8_rows(
    evaluate: Evaluator, x: npt.NDArray[np.float32], activation: str, order: npt.NDArray[np.int64]
) -> tuple[Part, ...]:
    """x f32[M, K] -> value f64[M, K], step f64[M, K], all of them exactly."""
    value, step = evaluate(_rows(activation), x=x, order=order)
    return Part("value", value), Part("step", step)


@cache
def _rows(activation: str) -> Graph:
    g = Writer()
    x, order = g.input("x", "f32"), g.input("order", "i64")
    ordered = g("Gather", x, order, axis=1)
    if activation == "i8_g32":
        groups = g("Shape", x, dtype="i64", start=1, end=2) // 32
        ordered = g("Reshape", ordered, g("Concat", [0], groups, [32], dtype="i64", axis=0))
    codes, scale, near_tie = _codes(g, ordered)
    scale, shape = scale.cast("f64"), g("Shape", x, dtype="i64")
    count = g("Squeeze", g("Shape", order))
    back = g("ScatterElements", order, order, g("Range", count * 0, count, 1), axis=0)
    value, step = (
        g("Gather", g("Reshape", part.cast("f64") * scale, shape), back, axis=1) for part in (codes, near_tie)
    )
    return g.finish(value=value, step=step)


@cache
def _quantizer() -> Graph:
    g = Writer()
    codes, scale, near_tie = _codes(g, g.input("x", "f32"))
    return g.finish(codes=codes.cast("f64"), scale=g("Squeeze", scale, [-1]), near_tie=near_tie)


def _codes(g: Writer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """codes, scale and near ties, in f32, along the last axis: s = amax / 127; codes = clamp(round_half_even(x / s),
    -127, 127); zeros give 0 and 0. By a power of two nothing is rounded but the tie itself, which is then none."""
    scale = g("ReduceMax", g("Abs", x), [-1], keepdims=1) / 127.0
    quotient = g("Where", scale.equals(0.0), 0.0, x / scale)
    nearest = nearest_integers(g, quotient, 127)
    rounded = g("Not", (scale.bits_as("u32") & FRACTION_BITS).equals(0))
    return nearest.codes, scale, nearest.near_tie & rounded
