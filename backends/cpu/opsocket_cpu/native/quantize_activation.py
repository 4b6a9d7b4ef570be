"""Rows as int8 codes with one scale each."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import QuantizeActivationPlan, QuantizeActivationSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields


class QuantizeActivationCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("k", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("codes", c_void_p), ("scale", c_void_p),
        ("x_dtype", c_int32),
    )  # fmt: skip


class NativeQuantizeActivation(NativePlan, QuantizeActivationPlan):
    """Scheme i8_token; the codes are those that the product with int8 activations makes for itself."""

    _fields = Fields(QuantizeActivationCommand, "x", "codes scale")

    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, QuantizeActivationSpec)
        self._k, self._dtype = self.request.spec.k, DTYPES[self.request.spec.x_dtype]

    def _outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty(len(x), self._k, dtype=torch.int8), torch.empty(len(x))

    def _command(self, result: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> Command:
        codes, scale = result
        return QuantizeActivationCommand(
            Op.QUANTIZE_ACTIVATION, 1, 0, len(x), self._k,
            x.data_ptr(), x.stride(0), codes.data_ptr(), scale.data_ptr(), self._dtype,
        )  # fmt: skip
