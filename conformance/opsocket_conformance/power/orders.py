"""Orders and shares of logits, as wrong kernels need them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opsocket_conformance.power.host import Float64

Int64 = npt.NDArray[np.int64]


def falling(values: Float64) -> Int64:
    """Indices by falling value, ties to the lower index."""
    return np.argsort(-values, axis=-1, kind="stable")


def falling_ties_high(values: Float64) -> Int64:
    reverse = np.argsort(-values[..., ::-1], axis=-1, kind="stable")
    return np.asarray(values.shape[-1] - 1 - reverse, np.int64)


def over_all(logits: Float64) -> Float64:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))
