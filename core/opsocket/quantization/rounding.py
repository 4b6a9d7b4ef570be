"""Division and rounding that the packers share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError

Array = npt.NDArray[Any]


def divide(numerator: Array, denominator: Array) -> npt.NDArray[np.float32]:
    """f32 quotient, 0 where the denominator is 0: a group without a step has only zeros in it."""
    denominator = denominator.astype(np.float32)
    out = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape), np.float32)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def f16_at_least(values: Array) -> npt.NDArray[np.float16]:
    """The least f16 not below each non-negative value. ContractError where there is none: the scale overflows."""
    largest = float(values.max())
    if largest > float(np.finfo(np.float16).max):
        raise ContractError("weight", "scales that fit f16 (at most 65504)", largest)
    nearest = values.astype(np.float16)
    return np.where(nearest < values, np.nextafter(nearest, np.float16(np.inf)), nearest)
