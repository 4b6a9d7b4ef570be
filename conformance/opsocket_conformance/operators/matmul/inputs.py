"""Activations that make faults of products visible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opsocket_conformance.floats import round_to

Float32 = npt.NDArray[np.float32]


def activations(rng: np.random.Generator, kind: str, rows: int, width: int, dtype: str) -> Float32:
    """x f32[M, K]. "normal"; "outliers": a few channels 60 times larger, a zero row and a tiny one; "extreme": all of
    one size and sign; "cancel": sums far smaller than their terms; "ties": halves, each 32 with an int8 scale of 1."""
    if kind == "ties":
        x = rng.integers(-127, 127, (rows, width)) + 0.5
        x[:, ::32] = 127.0
        return round_to(x, dtype)
    x = rng.standard_normal((rows, width))
    if kind == "outliers":
        x[:, rng.choice(width, max(width // 64, 1), replace=False)] *= 60
        x[1::7] = 0.0
        x[2::7] *= 2.0**-10
    elif kind == "extreme":
        x[:] = 3.0
    elif kind == "cancel":
        x[:, 1::2] = -x[:, ::2][:, : x[:, 1::2].shape[1]]
    return round_to(x, dtype)
