"""Between f32 values [T, Hkv, D] and what a cache stores of them: the pinned quantizer of `KVFormat`."""

from __future__ import annotations

import numpy as np

from opsocket.operators import Cache, KVFormat


def by_slot(plane: np.ndarray) -> np.ndarray:
    """A plane [blocks, tokens, ...] as rows by slot [slots, ...]: a view."""
    return plane.reshape(-1, *plane.shape[2:])


def store(cache: Cache, name: str, slots: np.ndarray, values: np.ndarray) -> None:
    """Write `values` [T, Hkv, D] of plane `name` ("k" or "v") at `slots` [T]."""
    fmt = cache.spec.k if name == "k" else cache.spec.v
    if not fmt.is_quantized:
        with np.errstate(over="ignore"):
            by_slot(cache.planes[name])[slots] = values
        return
    wide = values.astype(np.float32)
    if fmt.granularity == "token_head":
        # Rounded to the type it is stored in before it divides: what divides is what multiplies back.
        stored = (np.abs(wide).max(-1) / np.float32(fmt.max_code)).astype(cache.planes[f"{name}_scale"].dtype)
        by_slot(cache.planes[f"{name}_scale"])[slots] = stored
        scale = stored.astype(np.float32)[..., None]
    else:
        scale = _static(cache, name, fmt)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale == 0, np.float32(0), wide / scale)
    by_slot(cache.planes[name])[slots] = np.nan_to_num(np.rint(codes).clip(-fmt.max_code, fmt.max_code))


def load(cache: Cache, name: str, slots: np.ndarray) -> np.ndarray:
    """f32 [T, Hkv, D]: what plane `name` holds at `slots`."""
    fmt = cache.spec.k if name == "k" else cache.spec.v
    values = by_slot(cache.planes[name])[slots].astype(np.float32)
    if fmt.granularity == "token_head":
        values *= by_slot(cache.planes[f"{name}_scale"])[slots].astype(np.float32)[..., None]
    elif fmt.is_static:
        values *= _static(cache, name, fmt)
    return values


def _static(cache: Cache, name: str, fmt: KVFormat) -> np.ndarray:
    """The scale given to `allocate_cache`, to broadcast against [T, Hkv, D]: [1], [Hkv, 1] or [Hkv, D]."""
    scale = cache.k_scale if name == "k" else cache.v_scale
    return scale[:, None] if fmt.granularity == "head" else scale
