"""Rotary position embedding. Cosines and sines are computed once per position, in f64, and kept."""

from __future__ import annotations

from ctypes import Structure, addressof, c_double, c_int32, c_int64, c_void_p
from weakref import WeakValueDictionary

import numpy as np
import torch

from opsocket.operators import RopePlan, RopeSpec
from opsocket.operators.rope_frequencies import frequencies, magnitude
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields

TABLE_BYTES = 64 << 20
"""Address space for one table; memory is taken where positions are met. What lies beyond is computed each time."""


class RopeTableStruct(Structure):
    _fields_ = (("positions", c_int64), ("turns", c_void_p), ("state", c_void_p), ("factors", c_void_p))


class RopeCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("heads", c_int64), ("head_dim", c_int64), ("rotary_dim", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("y", c_void_p), ("y_stride", c_int64),
        ("positions", c_void_p), ("frequencies", c_void_p), ("factors", c_void_p), ("table", c_void_p),
        ("magnitude", c_double), ("interleaved", c_int32), ("dtype", c_int32),
    )  # fmt: skip


class Turns:
    """The cosines and sines that all plans with the same angles share; filled by the kernel, empty to begin with."""

    def __init__(self, spec: RopeSpec) -> None:
        row = 2 * spec.rotary_dim if spec.interleaved else spec.rotary_dim
        count = max(min(TABLE_BYTES // (4 * row), 1 << 20), 1)
        self._turns = np.zeros((count, row), np.float32)
        self._state = np.zeros(count, np.uint8)
        self._factors = np.full(spec.rotary_dim // 2, np.nan, np.float32)
        self.frequencies = np.ascontiguousarray(frequencies(spec), np.float64)
        self.magnitude = magnitude(spec)
        self.struct = RopeTableStruct(
            count, self._turns.ctypes.data, self._state.ctypes.data, self._factors.ctypes.data if spec.factors else 0
        )


_TURNS: WeakValueDictionary[object, Turns] = WeakValueDictionary()


def turns_of(spec: RopeSpec) -> Turns:
    """Shared where the spec alone decides the angles; with factors, each plan has its own, made for the last ones."""
    if spec.factors:
        return Turns(spec)
    key = (spec.rotary_dim, spec.theta, spec.interleaved, spec.scaling)
    found = _TURNS.get(key)
    if found is None:
        found = _TURNS[key] = Turns(spec)
    return found


class NativeRope(NativePlan, RopePlan):
    _counted = RopeCommand
    _fields = Fields(RopeCommand, "x positions factors y", "y")

    def _setup(self) -> None:
        super()._setup()
        spec = self.request.spec
        assert isinstance(spec, RopeSpec)
        self._turns = turns_of(spec)
        self._sizes = (spec.num_heads, spec.head_dim, spec.rotary_dim)
        self._tail = (
            self._turns.frequencies.ctypes.data, addressof(self._turns.struct), self._turns.magnitude,
            int(spec.interleaved), DTYPES[spec.dtype],
        )  # fmt: skip

    def _outputs(
        self, x: torch.Tensor, positions: torch.Tensor, factors: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out

    def _command(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        positions: torch.Tensor,
        factors: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> bytes:
        frequencies, table, *how = self._tail
        return RopeCommand.pack(
            Op.ROPE, 1, 0, x.shape[0], *self._sizes, x.data_ptr(), x.stride()[0], y.data_ptr(), y.stride()[0],
            positions.data_ptr(), frequencies, 0 if factors is None else factors.data_ptr(), table, *how,
        )  # fmt: skip
