"""Root-mean-square norm, of rows or of heads, with or without a residual."""

from __future__ import annotations

from ctypes import c_double, c_int32, c_int64, c_void_p
from typing import Any

import torch

from opsocket.operators import RMSNormPlan, RMSNormSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields


class RMSNormCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("heads", c_int64), ("width", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("residual", c_void_p), ("residual_stride", c_int64),
        ("sum", c_void_p),
        ("y", c_void_p), ("y_stride", c_int64),
        ("weight", c_void_p), ("eps", c_double), ("dtype", c_int32),
    )  # fmt: skip


class NativeRMSNorm(NativePlan, RMSNormPlan):
    """Two passes over a row that is then in the cache: the sum of squares in f32 lanes, and the scaling."""

    _counted = RMSNormCommand
    _fields = Fields(RMSNormCommand, "x weight residual y sum", "y sum")

    def _setup(self) -> None:
        super()._setup()
        spec = self.request.spec
        assert isinstance(spec, RMSNormSpec)
        self._heads, self._width, self._eps, self._dtype = spec.heads or 1, spec.width, spec.eps, DTYPES[spec.dtype]

    def _outputs(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor | None,
        out: torch.Tensor | None,
        residual_out: torch.Tensor | None,
    ) -> Any:
        def given(array: torch.Tensor | None) -> torch.Tensor:
            return torch.empty_like(x, memory_format=torch.contiguous_format) if array is None else array

        return given(out) if residual is None else (given(out), given(residual_out))

    def _command(
        self, result: Any, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, *_: Any
    ) -> bytes:
        y, added = (result, None) if residual is None else result
        return RMSNormCommand.pack(
            Op.RMS_NORM, 1, 0, x.shape[0], self._heads, self._width, x.data_ptr(), x.stride()[0],
            0 if residual is None else residual.data_ptr(), 0 if residual is None else residual.stride()[0],
            0 if added is None else added.data_ptr(), y.data_ptr(), y.stride()[0], weight.data_ptr(),
            self._eps, self._dtype,
        )  # fmt: skip
