"""Layout "panels" as data: what `src/panel.h` says, for Python."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch

from opsocket.operators.torch_session import storage_bytes
from opsocket.quantization.grouped import IQ4 as IQ4_INTEGERS

LAYOUTS = ("panels",)
PANEL = 32
TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


class Panels(ctypes.Structure):
    """`struct Panels`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("zero_offset", ctypes.c_int32),
        ("has_minimum", ctypes.c_int32),
        ("scale_f32", ctypes.c_int32),
        ("code", ctypes.c_int32),
        ("super", ctypes.c_int64),
    )


class PanelWeight(ctypes.Structure):
    """`struct PanelWeight`."""

    _fields_ = (("panels", Panels), ("permutation", ctypes.c_void_p))


INTEGERS, E4M3FN, E2M1, IQ4 = range(4)
"""`enum Code`."""

TABLES = {"e2m1": (E2M1, TWICE_E2M1, 12), "iq4": (IQ4, IQ4_INTEGERS, 128)}
"""Codes of four bits that are looked up, by their name in formats: what they are to kernels, the integers that they
stand for, and what makes these bytes."""

BY_TABLE = 7
"""In place of a number of bits: such codes."""

CODED_SCALES = {(2, True, 16), (4, True, 32), (5, True, 32), (4, False, 16), (6, False, 16), (BY_TABLE, False, 32)}
"""Bits, whether there are minimums, and slabs of weights whose scales stay codes: `is_form` of matmul_a8.cpp."""

MOST_GROUPS = 16
"""Of a super-block: `matmul_a8.h`."""


@dataclass(frozen=True, eq=False)
class CodedPanels:
    """Codes, integers or small floats, with a scale, and perhaps a minimum, per group. data: u8, as `panel.h` has it.
    facts: points at data. k: columns that the codes have; facts.k: with padding. permutation: i64 [k], None: in order.
    """

    data: torch.Tensor
    facts: Panels
    k: int
    permutation: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.data, self.permutation)


@dataclass(frozen=True, eq=False)
class FloatPanels:
    """data: [panels, k, 32] of f32 or f16, bf16 [panels, k / 2, 32, 2] with an odd k padded."""

    data: torch.Tensor
    dtype: str

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.data)


def planes_of(bits: int) -> tuple[tuple[int, int], ...]:
    """How codes of so many bits are cut: (bits, from which on) of each part, which lies packed in bytes by itself."""
    return ((4, 0), (bits - 4, 4)) if bits in (5, 6) else ((bits, 0),)


def slab_of(group: int) -> int:
    """Columns that are packed together, of groups of so many."""
    return 16 if group % 32 else 32
