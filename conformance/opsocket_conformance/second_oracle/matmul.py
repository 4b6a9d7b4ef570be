"""Products of matrices, and the quantizer of int8 activations, as ONNX primitives."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from opsocket_conformance.second_oracle.answer import Float64, Part, U, near
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Writer
from opsocket_conformance.second_oracle.rounding import nearest_integers
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


@cache
def _quantizer() -> Graph:
    """In f32: s = amax / 127; codes = clamp(round_half_even(x / s), -127, 127); a row of zeros gives 0 and 0."""
    g = Writer()
    x = g.input("x", "f32")
    scale = g("ReduceMax", g("Abs", x), [-1], keepdims=1) / 127.0
    quotient = g("Where", scale.equals(0.0), 0.0, x / scale)
    nearest = nearest_integers(g, quotient, 127)
    return g.finish(codes=nearest.codes.cast("f64"), scale=g("Squeeze", scale, [-1]), near_tie=nearest.near_tie)
