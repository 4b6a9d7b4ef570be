"""Matrix products with int8 activations: x is quantized on the way, sums of codes are exact."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

import torch

from opsocket.operators import PackedWeight
from opsocket.quantization import get_format
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import address
from opsocket_cpu.native.products import OneWeight, Product, WeightForEach
from opsocket_cpu.native.repeat import Fields

_MAX_WORKSPACE = 64 << 20
"""Bytes of quantized rows at a time; a product of more rows passes over the weights more than once."""


class MatmulA8Command(Command):
    _fields_ = (
        ("rows", c_int64), ("n", c_int64), ("k", c_int64), ("experts", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("weights", c_void_p), ("offsets", c_void_p), ("bias", c_void_p),
        ("y", c_void_p), ("y_stride", c_int64),
        ("x_dtype", c_int32), ("y_dtype", c_int32), ("x_group", c_int32),
    )  # fmt: skip


def row_bytes(k: int) -> int:
    """At least what the kernel keeps of one quantized row: codes of 16 bits, and three numbers for each 16 columns."""
    padded = -(-k // 64) * 64
    return 2 * padded + 3 * (padded // 16 + 16) * 4 + 128


class _A8(Product):
    def _setup(self) -> None:
        super()._setup()
        spec: Any = self.request.spec
        self._n, self._k = spec.n, spec.k
        self._x_dtype, self._y_dtype = DTYPES[spec.x_dtype], DTYPES[spec.out_dtype]
        self._row_bytes = row_bytes(spec.k)
        self._x_group = ACTIVATION_GROUP if get_format(spec.weight_format).activation == "i8_g32" else 0

    def _product(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        offsets: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Command:
        rows, array = len(x), self._weights(packed).array
        command = MatmulA8Command(
            Op.MATMUL_A8, 1, max(min(rows * self._row_bytes, _MAX_WORKSPACE), self._row_bytes),
            rows, self._n, self._k, len(packed), x.data_ptr(), x.stride(0),
            ctypes.addressof(array), address(offsets), address(bias), y.data_ptr(), y.stride(0),
            self._x_dtype, self._y_dtype, self._x_group,
        )  # fmt: skip
        command.kept = array  # type: ignore[attr-defined]
        return command


class NativeMatmulA8(_A8, OneWeight):
    """The integer sums of a weight with one scale per row go over all of K; other weights' over a group, or 32 columns
    where x has scales of its own for these."""

    _counted = MatmulA8Command
    _fields = Fields(MatmulA8Command, "x _ bias y", "y")


class NativeGroupedMatmulA8(_A8, WeightForEach):
    """The same for each expert's rows."""

    _counted = MatmulA8Command
