"""What a request's numerics let a product be computed with on a device."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch

from opsocket.operators import DeviceInfo, GroupedMatmulSpec, MatmulSpec, Session
from opsocket.quantization import QuantFormat
from opsocket_triton.arches import ARCHES

_UNITS: Final = {
    "sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 188,
    "gfx90a": 104, "gfx942": 304, "gfx950": 256, "gfx1100": 96, "gfx1201": 64,
}  # fmt: skip
"""Multiprocessors or compute units of each architecture's largest chip, for a device that is absent."""


def operand_of(device: DeviceInfo, spec: MatmulSpec | GroupedMatmulSpec, fmt: QuantFormat) -> str:
    """The type as which float activations and a weight are multiplied.

    "f32": products and sums in f32, rounded to nearest, which any numerics permit. "bf16", "f16": by matrix units,
    which cut off their sums, where that is permitted and both factors have the type, or may be rounded to it.
    """
    numerics, dtype = spec.numerics, spec.x_dtype
    stored = fmt.id if fmt.is_float else numerics.dequantized
    if dtype == "f32" or stored != dtype or numerics.accumulate != "f32_truncating":
        return "f32"
    arch = ARCHES.get(device.arch)
    chained = 1 if arch is None else arch.chained_products
    # CDNA 2 takes f16's subnormal numbers for zeros (AMD's instruction set manual, MFMA).
    if numerics.accumulate_step > chained or (dtype == "f16" and device.arch == "gfx90a"):
        return "f32"
    return dtype


def compute_units(session: Session) -> int:
    """Multiprocessors or compute units of a session's device."""
    if getattr(session, "is_interpreted", False):
        return _UNITS.get(session.device.arch, 128)
    return _units_of(session.device.index)


@lru_cache
def _units_of(index: int) -> int:
    units: int = torch.cuda.get_device_properties(index).multi_processor_count
    return units
