"""silu(gate) * up."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import SiluMulPlan, SiluMulSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields


class SiluMulCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("width", c_int64),
        ("gate", c_void_p), ("gate_stride", c_int64),
        ("up", c_void_p), ("up_stride", c_int64),
        ("y", c_void_p), ("y_stride", c_int64),
        ("dtype", c_int32),
    )  # fmt: skip


class NativeSiluMul(NativePlan, SiluMulPlan):
    """One pass; the exponential within one unit in the last place."""

    _counted = SiluMulCommand
    _fields = Fields(SiluMulCommand, "gate up y", "y")

    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, SiluMulSpec)
        self._width, self._dtype = self.request.spec.width, DTYPES[self.request.spec.dtype]

    def _outputs(self, gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return torch.empty_like(gate, memory_format=torch.contiguous_format) if out is None else out

    def _command(self, y: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None) -> bytes:
        return SiluMulCommand.pack(
            Op.SILU_MUL, 1, 0, gate.shape[0], self._width,
            gate.data_ptr(), gate.stride()[0], up.data_ptr(), up.stride()[0], y.data_ptr(), y.stride()[0], self._dtype,
        )  # fmt: skip
