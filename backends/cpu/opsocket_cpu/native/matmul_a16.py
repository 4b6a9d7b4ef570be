"""Products with float activations."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import MatmulPlan, PackedWeight
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.native import panels, weights
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan, address
from opsocket_cpu.native.repeat import Fields


class MatmulA16Command(Command):
    _fields_ = (
        ("weight", panels.Panels),
        ("rows", c_int64), ("n", c_int64), ("k", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("permutation", c_void_p), ("bias", c_void_p),
        ("y", c_void_p), ("y_stride", c_int64),
        ("x_dtype", c_int32), ("y_dtype", c_int32), ("float_dtype", c_int32),
    )  # fmt: skip


class NativeMatmulA16(NativePlan, weights.OverPanels, MatmulPlan):
    """Codes meet a few rows as digits of integers, or are widened to f32; sums are f32."""

    _counted = MatmulA16Command
    _fields = Fields(MatmulA16Command, "x _ bias y", "y")

    def _outputs(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.empty(len(x), packed.n, dtype=TORCH_DTYPES[self.spec.out_dtype]) if out is None else out

    def _command(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        packed: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> Command:
        content: panels.CodedPanels | panels.FloatPanels = packed.content
        if isinstance(content, panels.FloatPanels):
            facts, permutation, kind = panels.Panels(content.data.data_ptr()), None, DTYPES[content.dtype]
            padded = packed.k
        else:
            facts, permutation, kind, padded = content.facts, content.permutation, -1, content.facts.k
        in_place = self.spec.x_dtype == "f32" and permutation is None and padded == packed.k
        return MatmulA16Command(
            Op.MATMUL, 1, 0 if in_place else len(x) * padded * 4, facts, len(x), packed.n, packed.k,
            x.data_ptr(), x.stride(0), address(permutation), address(bias), y.data_ptr(), y.stride(0),
            DTYPES[self.spec.x_dtype], DTYPES[self.spec.out_dtype], kind,
        )  # fmt: skip
