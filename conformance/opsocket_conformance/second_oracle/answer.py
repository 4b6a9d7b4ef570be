"""What the second oracle says: parts of an answer, each with how far another float64 answer may be from it.

The bounds are those of docs/tolerance.md with u = 2^-53 in every place: of outputs, sums, exponentials and tangents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket_conformance.floats import roundoff
from opsocket_conformance.tolerance import Bound, bound

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

U: Final = roundoff("f64")
U_EXP: Final = 4 * U
U_TANH: Final = 4 * U
"""Two units in the last place, as the interface has it for f32."""


@dataclass(frozen=True, eq=False)
class Part:
    """One array of an answer. bound: None where it must be the same exactly."""

    name: str
    value: Array | None
    bound: Bound | None = None


def near(name: str, value: Float64, inner: npt.ArrayLike) -> Part:
    """A part that may differ by 2 (u |value| + inner)."""
    return Part(name, value, bound(value, inner, "f64"))
