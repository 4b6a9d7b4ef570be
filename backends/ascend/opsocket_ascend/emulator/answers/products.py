"""Products of matrices."""

from __future__ import annotations

from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import EmulationError, Tensor


def _product(self: Tensor, other: Tensor, out: Tensor) -> None:
    if self.dtype != other.dtype:
        raise EmulationError(f"a product of {self} and {other}")
    out.write(self.value() @ other.value())


@answers("aclnnMatmul", "self other out cube_math:int")
def _matmul(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    _product(self, other, out)


@answers("aclnnBatchMatMul", "self other out cube_math:int")
def _batch_matmul(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    _product(self, other, out)


@answers("aclnnMm", "self other out cube_math:int")
def _mm(self: Tensor, other: Tensor, out: Tensor, cube_math: int) -> None:
    _product(self, other, out)
