"""The product of rows with a weight, whatever its format: reference, and how far a correct result may be from it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    Numerics,
)
from opsocket.quantization import QuantFormat
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to, roundoff
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.matmul.quantize_activation import int8_rows
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
        lost = rounded_scales(exact, fmt, weight, numerics)
        return want, tolerance(exact, weight.magnitude, want, out_dtype, numerics, bias, rounded, lost)
    rows = int8_rows(x, fmt.activation, weight.order)
    want = matmul(rows.value, weight.value, bias)
    apart = rows.step @ np.abs(weight.value).T / 2 + rounded_scales(rows.value, fmt, weight, numerics)
    return want, integer_tolerance(rows.value, weight, _piece(fmt, x.shape[-1]), apart, want, out_dtype, numerics, bias)


def _piece(fmt: QuantFormat, k: int) -> int:
    """Columns that may share a sum of integers: a whole row where nothing divides it, else at most 32."""
    if fmt.activation == "i8_token" and not fmt.block_k:
        return k
    return math.gcd(fmt.block_k or k, ACTIVATION_GROUP)


def rounded_scales(x: Float64, fmt: QuantFormat, weight: Weight, numerics: Numerics) -> Float64 | float:
    """f64[M, N]: what it costs at most that the scale of each group, and its minimum, are rounded to
    `numerics.scales`. How much a scale is off then is known: sum over groups of |R(s) - s| |sum x code|. 0 where that
    is not permitted."""
    if fmt.is_float or numerics.scales == "f32":
        return 0.0
    parts = [(weight.scale, _over(weight.value, weight.scale))]
    if fmt.zero == "float_min":
        parts = [
            (weight.scale, _over(weight.value + weight.apart, weight.scale)),
            (weight.apart, np.broadcast_to(1.0, weight.apart.shape)),
        ]
    lost = np.zeros((len(x), len(weight.value)))
    width = fmt.block_k or x.shape[-1]
    for factor, codes in parts:
        off = np.abs(round_to(factor, numerics.scales) - factor)
        for first in range(0, x.shape[-1], width):
            columns = weight.order[first : first + width]
            lost += np.abs(x[:, columns] @ codes[:, columns].T) * off[:, columns[0]]
    return lost


def _over(values: Float64, scale: Float64) -> Float64:
    """Codes; of a scale of 0, which no rounding moves, none."""
    return np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)


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
    apart: Float64 | float = 0.0,
) -> Bound:
    """E of y = x W^T + b. magnitude f64[N, K]: the size of what a kernel may have to add up for each weight, which is
    |w| for a float, and |scale| (|code| + |zero|) where codes and zero points may be summed apart. dequantized
    f64[N, K]: the weights, where they may be rounded to `numerics.dequantized` first. apart: what else is permitted,
    as a part of T."""
    absolute = np.abs(x) @ magnitude.T
    inner = accumulation(numerics, x.shape[-1], 3) * absolute + apart
    if dequantized is not None and numerics.dequantized != "f32":
        size = np.abs(dequantized)
        spread = of_random_sign(x**2 @ dequantized.T**2, np.abs(x) @ size.T)
        underflow = np.abs(x) @ np.minimum(size, STEP[numerics.dequantized]).T
        inner = inner + roundoff(numerics.dequantized) * spread + underflow
    if bias is not None:
        inner = inner + U * np.abs(bias)
    return bound(ref, inner, out_dtype)


def integer_tolerance(
    x: Float64,
    weight: Weight,
    piece: int,
    apart: Float64,
    ref: Float64,
    out_dtype: str,
    numerics: Numerics,
    bias: Float64 | None = None,
) -> Bound:
    """E of y = sum over pieces of s_x (s_w (codes_x . codes_w) - apart sum(codes_x)) + b, whose sums of integers are
    exact. x f64[M, K]: codes times scales. piece: columns in one sum of integers. apart f64[M, N]: what else is
    permitted, as a part of T: half of s_x |w|, over activations so near a tie that their code may be one off."""
    terms, products = np.zeros_like(ref), 0
    for part in (weight.value + weight.apart, weight.apart):
        if not part.any():
            continue
        products += x.shape[-1] // piece
        for first in range(0, x.shape[-1], piece):
            columns = weight.order[first : first + piece]
            terms += np.abs(x[:, columns] @ part[:, columns].T)
    inner = (accumulation(numerics, products, 0) + 3 * U) * terms + apart
    if bias is not None:
        inner = inner + U * np.abs(bias)
    return bound(ref, inner, out_dtype)
