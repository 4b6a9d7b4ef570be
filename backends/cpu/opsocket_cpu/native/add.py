"""a + b."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import AddPlan, AddSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields


class AddCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("width", c_int64),
        ("a", c_void_p), ("a_stride", c_int64),
        ("b", c_void_p), ("b_stride", c_int64),
        ("y", c_void_p), ("y_stride", c_int64),
        ("dtype", c_int32),
    )  # fmt: skip


class NativeAdd(NativePlan, AddPlan):
    _counted = AddCommand
    _fields = Fields(AddCommand, "a b y", "y")

    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, AddSpec)
        self._width, self._dtype = self.request.spec.width, DTYPES[self.request.spec.dtype]

    def _outputs(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return torch.empty_like(a, memory_format=torch.contiguous_format) if out is None else out

    def _command(self, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> bytes:
        return AddCommand.pack(
            Op.ADD, 1, 0, a.shape[0], self._width,
            a.data_ptr(), a.stride()[0], b.data_ptr(), b.stride()[0], y.data_ptr(), y.stride()[0], self._dtype,
        )  # fmt: skip
