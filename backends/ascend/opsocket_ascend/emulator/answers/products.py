"""Products of matrices."""

from __future__ import annotations

import numpy as np

from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import EmulationError, Tensor
from opsocket_ascend.emulator.tiles import FRACTAL_NZ

_KEEP_DTYPE, _USE_FP16 = 0, 2
"""Of cubeMathType."""


def _product(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    """Matrices of f32 as they are, or rounded to f16: torch_npu asks for that of a chip without products of f32."""
    if self.dtype != other.dtype:
        raise EmulationError(f"a product of {self} and {other}")
    a, b = self.value(), other.value()
    if self.dtype.name == "f32" and cube_math != _KEEP_DTYPE:
        if cube_math != _USE_FP16:
            raise EmulationError(f"a product of f32 with cubeMathType {cube_math}: not emulated")
        with np.errstate(over="ignore"):
            a, b = (values.astype(np.float16).astype(np.float64) for values in (a, b))
    out.write(a @ b)


@answers("aclnnMatmul", "self other out cube_math:int")
def _matmul(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    _product(self, other, out, cube_math)


@answers("aclnnMatmulWeightNz", "self other out cube_math:int")
def _tiled_matmul(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    """Of a 16-bit matrix by one in FRACTAL_NZ, transposed or not."""
    if self.dtype != other.dtype or self.dtype.name not in ("f16", "bf16") or other.format != FRACTAL_NZ:
        raise EmulationError(f"a product of {self} and {other}")
    out.write(self.value() @ other.weight())


@answers("aclnnBatchMatMul", "self other out cube_math:int")
def _batch_matmul(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    _product(self, other, out, cube_math)


@answers("aclnnMm", "self other out cube_math:int")
def _mm(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    _product(self, other, out, cube_math)
