"""What wrong cache kernels are made of: a cache's contents on the host, and back, by way of a right session's kernels.

A fault that stores a wrong code writes the value that the code stands for: a right quantizer stores it as that code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import Cache, CacheReadSpec, CacheWriteSpec, KVFormat, Request, Session, SlotBatch
from opsocket_conformance.floats import fp8_magnitudes, round_to, round_to_fp8
from opsocket_conformance.power.host import Float64

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """k f64[T, Hkv, Dk], v f64[T, Hkv, Dv]; v is None for a latent cache."""

    k: Float64
    v: Float64 | None

    def rows(self, which: Any) -> Tokens:
        """Some of the tokens."""
        return Tokens(self.k[which], None if self.v is None else self.v[which])


def contents(session: Session, cache: Cache, slots: Slots) -> Tokens:
    """What lies at some slots, dequantized."""
    plan: Any = session.plan(Request(CacheReadSpec("f32"), cache.spec, cache.layout), SlotBatch(slots))
    k, v = plan.run(cache)
    return Tokens(session.download(k).astype(np.float64), None if v is None else session.download(v).astype(np.float64))


def put(session: Session, cache: Cache, slots: Slots, tokens: Tokens) -> Cache:
    """The cache with tokens at slots i64[T], none of them twice."""
    plan: Any = session.plan(Request(CacheWriteSpec("f32"), cache.spec, cache.layout), SlotBatch(slots))
    v = None if tokens.v is None else session.upload(tokens.v.astype(np.float32), "f32")
    written: Cache = plan.run(cache, session.upload(tokens.k.astype(np.float32), "f32"), v)
    return written


def static_scale(session: Session, cache: Cache, name: str) -> Float64 | None:
    """K's or V's static scale, broadcastable against [T, Hkv, D]; None where there is none."""
    array, fmt = getattr(cache, f"{name}_scale"), getattr(cache.spec, name)
    if array is None:
        return None
    host = session.download(array).astype(np.float64)
    return host.reshape(-1, 1) if fmt.granularity == "head" else host


def true_scale(x: Float64, fmt: KVFormat, static: Float64 | None) -> Float64:
    """The scale that the format pins, broadcastable against x."""
    if static is not None:
        return static
    if fmt.granularity == "none":
        return np.ones((1, 1, 1))
    largest = np.abs(x.astype(np.float32)).max(axis=-1, keepdims=True)
    return round_to(largest / np.float32(fmt.max_code), fmt.scale_dtype).astype(np.float64)


def divided(x: Float64, scale: Float64) -> Float64:
    """x / scale in f32; 0 where the scale is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = (x.astype(np.float32) / scale.astype(np.float32)).astype(np.float64)
    return np.where(np.broadcast_to(scale == 0, quotient.shape), 0.0, quotient)


def nearest_code(quotient: Float64, fmt: KVFormat) -> Float64:
    """The pinned code: ties to even, saturated."""
    if fmt.code.startswith("f8"):
        return round_to_fp8(quotient, fmt.code)
    return np.clip(np.rint(quotient), -fmt.max_code, fmt.max_code)


def lower_code(quotient: Float64, fmt: KVFormat) -> Float64:
    """Cut off towards zero, saturated."""
    if not fmt.code.startswith("f8"):
        return np.clip(np.trunc(quotient), -fmt.max_code, fmt.max_code)
    table = fp8_magnitudes(fmt.code)
    size = np.where(np.isnan(quotient), 0.0, np.abs(quotient))
    below = table[np.maximum(np.searchsorted(table, size, side="right") - 1, 0)]
    return np.where(np.isnan(quotient), np.nan, np.copysign(below, quotient))


def arguments(plan: Any, args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
    return dict(inspect.signature(plan.inner.run).bind(*args, **kwargs).arguments)


def all_slots(cache: Cache) -> Slots:
    return np.arange(cache.spec.num_slots)


def key_format(request: Request) -> KVFormat:
    assert request.cache is not None
    return request.cache.k


def stored_as(*codes: str, granularity: str = "") -> Callable[[Request], bool]:
    return lambda request: key_format(request).code in codes and granularity in ("", key_format(request).granularity)


def is_static(request: Request) -> bool:
    return key_format(request).is_static


def has_values(request: Request) -> bool:
    assert request.cache is not None
    return request.cache.v is not None


def alike(request: Request) -> bool:
    """K and V of one shape and format."""
    cache = request.cache
    return cache is not None and cache.head_dim_k == cache.head_dim_v and cache.k == cache.v


FP8: Final = stored_as("f8e4m3fn", "f8e5m2", "f8e4m3fnuz")
INTEGER: Final = stored_as("i8", "i4", "i2")
TOKEN_HEAD: Final = stored_as("i8", "i4", "i2", "f8e4m3fn", granularity="token_head")
PLAIN: Final = stored_as("f32", "f16", "bf16")
