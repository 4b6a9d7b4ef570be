"""The product of rows with a weight, whatever its format: reference, and how far a correct result may be from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    Numerics,
)
from opsocket.quantization import QuantFormat
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import roundoff
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.matmul.quantize_activation import quantize_activation
from opsocket_conformance.operators.matmul.weights import Weight
from opsocket_conformance.tolerance import STEP, Bound, U, accumulation, bound, of_random_sign

Float32 = npt.NDArray[np.float32]


def expect(
    fmt: QuantFormat, x: Float32, weight: Weight, bias: Float64 | None, out_dtype: str, numerics: Numerics
) -> tuple[Float64, Bound]:
    """The product that a format's id stands for, its activation precision included, and its bound."""
    if fmt.activation == "none":
        exact = x.astype(np.float64)
        want = matmul(exact, weight.value, bias)
        rounded = None if fmt.is_float else weight.value
        return want, tolerance(exact, weight.magnitude, want, out_dtype, numerics, bias, rounded)
    row = quantize_activation(x)
    scale = row.scale.astype(np.float64)[:, None]
    product = matmul(row.codes * scale, weight.value)
    flips = (row.near_tie * scale) @ np.abs(weight.value).T
    want = product if bias is None else product + bias
    return want, integer_tolerance(flips, product, want, out_dtype, bias)


@judge_only
def matmul(x: Float64, weight: Float64, bias: Float64 | None = None) -> Float64:
    """x f64[M, K], weight f64[N, K], bias f64[N] -> f64[M, N]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def tolerance(
    x: Float64,
    magnitude: Float64,
    ref: Float64,
    out_dtype: str,
    numerics: Numerics,
    bias: Float64 | None = None,
    dequantized: Float64 | None = None,
) -> Bound:
    """E of y = x W^T + b. magnitude f64[N, K]: the size of what a kernel may have to add up for each weight, which is
    |w| for a float, and |scale| (|code| + |zero|) where codes and zero points may be summed apart. dequantized
    f64[N, K]: the weights, where they may be rounded to `numerics.dequantized` first."""
    absolute = np.abs(x) @ magnitude.T
    inner = accumulation(numerics, x.shape[-1], 3) * absolute
    if dequantized is not None and numerics.dequantized != "f32":
        size = np.abs(dequantized)
        spread = of_random_sign(x**2 @ dequantized.T**2, np.abs(x) @ size.T)
        underflow = np.abs(x) @ np.minimum(size, STEP[numerics.dequantized]).T
        inner = inner + roundoff(numerics.dequantized) * spread + underflow
    if bias is not None:
        inner = inner + U * np.abs(bias)
    return bound(ref, inner, out_dtype)


def integer_tolerance(
    flips: Float64, product: Float64, ref: Float64, out_dtype: str, bias: Float64 | None = None
) -> Bound:
    """E of y = s_x s_w (codes_x . codes_w) + b, whose integer part is exact. flips f64[M, N]: the sum of s_x |w| over
    activations so near a tie that their code may be one off. product: y without b."""
    inner = 4 * U * np.abs(product) + flips / 2
    if bias is not None:
        inner = inner + U * np.abs(bias)
    return bound(ref, inner, out_dtype)
