"""From logits to token ids."""

from __future__ import annotations

from ctypes import Structure, addressof, c_int32, c_int64, c_void_p

import numpy as np
import torch

from opsocket.operators import SampleBatch, SamplePlan, SampleSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan

_COLUMNS = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "uniform", "repetition", "presence", "frequency"), np.float32),
    **dict.fromkeys(("top_k", "history_indptr", "history_ids"), np.int64),
    "history_counts": np.float32,
}


class SampleRowsStruct(Structure):
    _fields_ = tuple((name, c_void_p) for name in _COLUMNS)


class SampleCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("width", c_int64), ("logits", c_void_p), ("logits_stride", c_int64),
        ("batch", c_void_p), ("y", c_void_p), ("dtype", c_int32),
    )  # fmt: skip


class NativeSample(NativePlan, SamplePlan):
    """Sums in f64 of f32 weights e^((l - largest) / temperature); only as much of the order as the decision needs."""

    def _setup(self) -> None:
        super()._setup()
        assert isinstance(self.request.spec, SampleSpec)
        self._width, self._dtype = self.request.spec.width, DTYPES[self.request.spec.dtype]
        self._rows = SampleRowsStruct()
        self._workspace = (20 * self._width + 255) // 64 * 64 * self._threads

    def _update(self, batch: SampleBatch) -> None:
        self._columns = {n: np.ascontiguousarray(getattr(batch, n), dtype).copy() for n, dtype in _COLUMNS.items()}
        for name, column in self._columns.items():
            setattr(self._rows, name, column.ctypes.data)

    def _outputs(self, logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return torch.empty(logits.shape[0], dtype=torch.int64) if out is None else out

    def _command(self, y: torch.Tensor, logits: torch.Tensor, out: torch.Tensor | None) -> bytes:
        return SampleCommand.pack(
            Op.SAMPLE, 1, self._workspace, logits.shape[0], self._width,
            logits.data_ptr(), logits.stride()[0], addressof(self._rows), y.data_ptr(), self._dtype,
        )  # fmt: skip
