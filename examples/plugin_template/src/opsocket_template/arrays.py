"""The dtypes of this backend's arrays, and how a result leaves a kernel."""

from __future__ import annotations

import numpy as np

from opsocket.operators import ContractError

DTYPES = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_of(name: str) -> np.dtype:
    """The NumPy dtype of one of the interface's names."""
    if name not in DTYPES:
        raise ContractError("dtype", f"one of {sorted(DTYPES)}", repr(name))
    return DTYPES[name]


def result(values: np.ndarray, dtype: str, out: np.ndarray | None) -> np.ndarray:
    """Values rounded once to `dtype`: in the caller's array where there is one, else in a new one."""
    with np.errstate(over="ignore"):  # beyond f16 is inf, as everywhere
        if out is None:
            return values.astype(dtype_of(dtype), copy=False)
        out[...] = values
        return out
