"""What checks of row-wise operators have in common: rows of one activation type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from opsocket_conformance.case import Check

DTYPES: Final = ("bf16", "f16", "f32")

WIDTHS: Final = ((536, 7), (1, 1), (33, 0), (4864, 3))
"""Of elementwise operators: width, and rows."""


@dataclass(frozen=True)
class ActivationCheck(Check):
    """t: rows. dtype: of the activations."""

    shown: ClassVar[tuple[str, ...]] = ("t", "dtype", "width", "heads", "d", "experts", "k")

    t: int = 7
    dtype: str = "bf16"

    @property
    def operator(self) -> str:
        return self.name

    def features(self) -> frozenset[str]:
        return frozenset({f"op:{self.operator}", f"dtype:{self.dtype}"})
