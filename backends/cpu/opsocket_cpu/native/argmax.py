"""The greedy token."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import ArgmaxPlan, ArgmaxSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields


class ArgmaxCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("width", c_int64), ("x", c_void_p), ("x_stride", c_int64), ("y", c_void_p),
        ("dtype", c_int32),
    )  # fmt: skip


class NativeArgmax(NativePlan, ArgmaxPlan):
    """Maxima of blocks, then the place in the first block that has the largest. The first NaN is above all."""

    _counted = ArgmaxCommand
    _fields = Fields(ArgmaxCommand, "x y", "y")

    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, ArgmaxSpec)
        self._width, self._dtype = self.request.spec.width, DTYPES[self.request.spec.dtype]

    def _outputs(self, logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return torch.empty(logits.shape[0], dtype=torch.int64) if out is None else out

    def _command(self, y: torch.Tensor, logits: torch.Tensor, out: torch.Tensor | None) -> bytes:
        rows = logits.shape[0]
        workspace = 16 * min(rows, self._threads - 1) * self._threads  # of which more rows need none
        return ArgmaxCommand.pack(
            Op.ARGMAX, 1, workspace, rows, self._width, logits.data_ptr(), logits.stride()[0], y.data_ptr(), self._dtype
        )
