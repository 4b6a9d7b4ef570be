"""Rows of a matrix."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import TakeRowsPlan, TakeRowsSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields


class TakeRowsCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("width", c_int64), ("height", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("ids", c_void_p),
        ("y", c_void_p), ("y_stride", c_int64),
        ("dtype", c_int32),
    )  # fmt: skip


class NativeTakeRows(NativePlan, TakeRowsPlan):
    """A row number that is not in x gives a row of NaN."""

    _counted = TakeRowsCommand
    _fields = Fields(TakeRowsCommand, "x ids y", "y")

    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, TakeRowsSpec)
        self._width, self._dtype = self.request.spec.width, DTYPES[self.request.spec.dtype]

    def _outputs(self, x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return x.new_empty((rows.shape[0], self._width)) if out is None else out

    def _command(self, y: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None) -> bytes:
        return TakeRowsCommand.pack(
            Op.TAKE_ROWS, 1, 0, rows.shape[0], self._width, x.shape[0],
            x.data_ptr(), x.stride()[0], rows.data_ptr(), y.data_ptr(), y.stride()[0], self._dtype,
        )  # fmt: skip
