"""Products with float activations."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

import torch

from opsocket.operators import PackedWeight
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import address
from opsocket_cpu.native.products import OneWeight, Product, WeightForEach
from opsocket_cpu.native.repeat import Fields


class MatmulA16Command(Command):
    _fields_ = (
        ("rows", c_int64), ("n", c_int64), ("k", c_int64), ("experts", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("weights", c_void_p), ("offsets", c_void_p), ("bias", c_void_p),
        ("y", c_void_p), ("y_stride", c_int64),
        ("x_dtype", c_int32), ("y_dtype", c_int32), ("float_dtype", c_int32), ("bf16_weights", c_int32),
    )  # fmt: skip


class _A16(Product):
    def _product(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        offsets: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Command:
        spec: Any = self.request.spec
        array, in_order, float_dtype = self._weights(packed)
        in_place = spec.x_dtype == "f32" and in_order
        command = MatmulA16Command(
            Op.MATMUL, 1, 0 if in_place else len(x) * -(-spec.k // 64) * 64 * 4,
            len(x), spec.n, spec.k, len(packed), x.data_ptr(), x.stride(0),
            ctypes.addressof(array), address(offsets), address(bias), y.data_ptr(), y.stride(0),
            DTYPES[spec.x_dtype], DTYPES[spec.out_dtype], -1 if float_dtype is None else DTYPES[float_dtype],
            int(spec.numerics.dequantized == "bf16"),
        )  # fmt: skip
        command.kept = array  # type: ignore[attr-defined]
        return command


class NativeMatmulA16(_A16, OneWeight):
    """Codes meet a few rows as digits of integers, or are widened to f32, or to bf16 where tiles of AMX multiply
    many rows; sums are f32."""

    _counted = MatmulA16Command
    _fields = Fields(MatmulA16Command, "x _ bias y", "y")


class NativeGroupedMatmulA16(_A16, WeightForEach):
    """The same for each expert's rows."""

    _counted = MatmulA16Command
