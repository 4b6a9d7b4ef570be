"""Rounding to the storage types, and what the tolerance needs to know about each; written for the oracle alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from opsocket.operators import dtype_info

Float64 = npt.NDArray[np.float64]

_TINY = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-24, "f64": 2.0**-1022}


def roundoff(dtype: str) -> float:
    """Unit roundoff u = 2^-p of a significand of p bits: the largest relative error of one rounding to nearest."""
    return dtype_info(dtype).unit_roundoff


def tiny(dtype: str) -> float:
    """What underflow may cost in absolute terms: the smallest normal number where hardware flushes subnormals to zero
    (f32 and bf16), one subnormal step in f16, whose conversion instructions all keep subnormals."""
    return _TINY[dtype]


def round_to(values: npt.ArrayLike, dtype: str) -> npt.NDArray[np.float32]:
    """Values rounded to the nearest f32, bf16 or f16, ties to even, as f32."""
    x = np.asarray(values, np.float32)
    if dtype == "f32":
        return x.copy()
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


_FP8 = {"f8e4m3fn": (3, 7, 448.0), "f8e4m3fnuz": (3, 8, 240.0), "f8e5m2": (2, 15, 57344.0)}


@lru_cache
def fp8_magnitudes(code: str) -> Float64:
    """The finite values of the non-negative codes 0, 1, 2, ... of an 8-bit float, which rise with the code."""
    fraction_bits, bias, largest = _FP8[code]
    codes = np.arange(128)
    exponent, fraction = codes >> fraction_bits, (codes & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    normal = np.ldexp(1 + fraction, exponent - bias)
    values = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), normal)
    return values[values <= largest]


def round_to_fp8(values: npt.ArrayLike, code: str) -> Float64:
    """Nearest representable value, ties to the even code, saturated at the largest finite one; NaN stays NaN."""
    x = np.asarray(values, np.float64)
    table = fp8_magnitudes(code)
    size = np.minimum(np.abs(x), table[-1])
    above = np.searchsorted(table, np.where(np.isnan(size), 0.0, size), side="left")
    below = np.maximum(above - 1, 0)
    up, down = table[above] - size, size - table[below]
    take_below = (down < up) | ((down == up) & (below % 2 == 0))
    result = np.copysign(np.where(take_below, table[below], table[above]), x)
    return np.where(np.isnan(x), np.nan, result)


def is_representable(values: npt.ArrayLike, dtype: str) -> bool:
    """Whether rounding to `dtype` changes nothing: what an oracle may be given."""
    x = np.asarray(values, np.float32)
    return bool(np.array_equal(round_to(x, dtype), x, equal_nan=True))
