"""Canonical weights of 8-bit floats: codes that no integer of 8 bits holds, with one scale per group of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError
from opsocket.quantization.float8 import f8e4m3fn_to_f32

if TYPE_CHECKING:
    from opsocket.quantization.formats import QuantFormat

Array = npt.NDArray[Any]

_CHUNK = 1 << 20  # weights dequantized at a time: the temporaries stay in cache


@dataclass(frozen=True, eq=False)
class ScaledFloats:
    """W[n, j] = scale[n, j // group_size] * codes[n, j], the codes being bit patterns of f8e4m3fn.

    codes: u8 [N, K], the tensor that was given. scale: f32 [N, K / group_size], exact; rows that share a scale have it
    each. group_size == k means one scale per row.
    """

    n: int
    k: int
    group_size: int
    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weight, f32 [N, K], rounded once."""
        out = np.empty((self.n, self.k), np.float32)
        rows = max(1, _CHUNK // self.k)
        for start in range(0, self.n, rows):
            part = slice(start, min(start + rows, self.n))
            values = f8e4m3fn_to_f32(self.codes[part]).reshape(-1, self.k // self.group_size, self.group_size)
            out[part] = (values * self.scale[part, :, None]).reshape(-1, self.k)
        return out


def unpack(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> ScaledFloats:
    """Canonical form of validated tensors. Called through `QuantFormat.scale_floats`."""
    if format.code != "f8e4m3fn":
        raise ContractError("format", "a format of 8-bit floats", format.id)
    size, scale = format.group_size(k), tensors["scale"].astype(np.float32)
    if format.block_k:
        scale = scale[:, np.arange(k // size) * size // format.block_k]
    of_rows = np.repeat(scale.reshape(len(scale), -1), format.block_n or n, axis=0)[:n]
    return ScaledFloats(n, k, size, tensors["weight"], np.ascontiguousarray(of_rows))
