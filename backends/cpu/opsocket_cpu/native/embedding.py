"""Rows of a table, gathered from the panels that a product reads: a tied head needs one copy."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import ContractError, EmbeddingPlan, PackedWeight
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.native import panels, weights
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan, address


class EmbeddingCommand(Command):
    _fields_ = (
        ("weight", panels.Panels),
        ("rows", c_int64), ("k", c_int64),
        ("ids", c_void_p), ("permutation", c_void_p),
        ("y", c_void_p), ("y_stride", c_int64),
        ("dtype", c_int32), ("float_dtype", c_int32),
    )  # fmt: skip


class NativeEmbedding(NativePlan, weights.OverPanels, EmbeddingPlan):
    """A replay, which runs without Python, gives a row of NaN for an id that is no row of the table."""

    _counted = EmbeddingCommand

    def _outputs(self, ids: torch.Tensor, packed: PackedWeight, out: torch.Tensor | None) -> torch.Tensor:
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < packed.n):
            raise ContractError("ids", f"0 to {packed.n - 1}", f"{int(ids.min())} to {int(ids.max())}")
        return torch.empty(len(ids), packed.k, dtype=TORCH_DTYPES[self.spec.out_dtype]) if out is None else out

    def _command(self, y: torch.Tensor, ids: torch.Tensor, packed: PackedWeight, out: torch.Tensor | None) -> Command:
        content: panels.CodedPanels | panels.FloatPanels = packed.content
        dtype = DTYPES[self.spec.out_dtype]
        if isinstance(content, panels.FloatPanels):
            facts, permutation, kind = panels.Panels(content.data.data_ptr(), packed.n), None, DTYPES[content.dtype]
        else:
            facts, permutation, kind = content.facts, content.permutation, -1
        return EmbeddingCommand(
            Op.EMBEDDING, 1, 0, facts, len(ids), packed.k, ids.data_ptr(), address(permutation),
            y.data_ptr(), y.stride(0), dtype, kind,
        )  # fmt: skip
