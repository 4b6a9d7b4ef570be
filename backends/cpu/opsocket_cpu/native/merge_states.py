"""The union of attention over disjoint key sets."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import MergeStatesPlan, MergeStatesSpec
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan


class MergeStatesCommand(Command):
    _fields_ = (
        ("parts", c_int64), ("rows", c_int64), ("heads", c_int64), ("head_dim", c_int64),
        ("outs", c_void_p), ("outs_part_stride", c_int64), ("outs_row_stride", c_int64),
        ("lses", c_void_p), ("lses_part_stride", c_int64),
        ("y", c_void_p), ("y_stride", c_int64),
        ("lse", c_void_p), ("in_dtype", c_int32), ("out_dtype", c_int32),
    )  # fmt: skip


class NativeMergeStates(NativePlan, MergeStatesPlan):
    """Weights e^(lse - largest lse) and their sum in f64, outputs in f32; a part of LSE -inf is not read."""

    def _setup(self) -> None:
        super()._setup()
        spec = self.request.spec
        assert isinstance(spec, MergeStatesSpec)
        self._shape, self._out_dtype = (spec.num_heads, spec.head_dim), TORCH_DTYPES[spec.out_dtype]
        self._dtypes = (DTYPES[spec.in_dtype], DTYPES[spec.out_dtype])

    def _outputs(
        self, outs: torch.Tensor, lses: torch.Tensor, out: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = outs.shape[1]
        if out is None:
            out = torch.empty((rows, *self._shape), dtype=self._out_dtype)
        return out, torch.empty((rows, self._shape[0]))

    def _command(
        self,
        result: tuple[torch.Tensor, torch.Tensor],
        outs: torch.Tensor,
        lses: torch.Tensor,
        out: torch.Tensor | None,
    ) -> bytes:
        y, lse = result
        parts, rows = outs.shape[:2]
        return MergeStatesCommand.pack(
            Op.MERGE_STATES, 1, 0, parts, rows, *self._shape, outs.data_ptr(), outs.stride()[0], outs.stride()[1],
            lses.data_ptr(), lses.stride()[0], y.data_ptr(), y.stride()[0], lse.data_ptr(), *self._dtypes,
        )  # fmt: skip
