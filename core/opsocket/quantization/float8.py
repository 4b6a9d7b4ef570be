"""The 8-bit float e4m3fn as NumPy sees it: uint8 bit patterns. Four exponent bits with bias 7, three fraction bits, no
infinities (OCP 8-bit Floating Point Specification)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

F8E4M3FN_MAX: Final = 448.0

_MAGNITUDES: Final = np.append(
    [fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10) for exponent in range(16)
     for fraction in range(8)][:127], np.nan
).astype(np.float32)  # fmt: skip
_VALUES: Final = np.concatenate((_MAGNITUDES, -_MAGNITUDES))


def f8e4m3fn_to_f32(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The float32 values of e4m3fn bit patterns, any shape; exact."""
    return _VALUES[np.asarray(bits, np.uint8)]


def f32_to_f8e4m3fn(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The e4m3fn bit patterns nearest to float32 values, any shape; ties to even, saturated at 448, NaN stays NaN."""
    values = np.asarray(values, np.float32)
    size = np.minimum(np.abs(values), np.float32(F8E4M3FN_MAX))
    bits = size.view(np.uint32)
    # Fraction bits 20 and below are rounded off; the exponent counts from 7 instead of 127.
    rounded = (bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    normal = rounded - np.uint32((127 - 7) << 3)
    # Below 2^-6 the steps are of 2^-9, as wide as those of f32 between 2^14 and 2^15.
    subnormal = (size + np.float32(2.0**14)).view(np.uint32) - np.float32(2.0**14).view(np.uint32)
    code = np.where(size < np.float32(2.0**-6), subnormal, normal)
    code = np.where(np.isnan(values), 0x7F, code).astype(np.uint8)
    signed: npt.NDArray[np.uint8] = code | np.signbit(values).astype(np.uint8) << np.uint8(7)
    return signed
