"""Writing and reading a cache under test, and holding what it stores against the pinned quantizer.

Where a cache is latent, v here is what it is there: the first head_dim_v channels of k, which nobody writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket.operators import Cache, CacheReadSpec, CacheSpec, CacheWriteSpec, KVFormat, Request, SlotBatch
from opsocket_conformance.bench import Bench, Denied
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators.cache.quantizer import Stored, static_scale, store
from opsocket_conformance.tolerance import rounded_once

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_HEADROOM = 0.9


@dataclass(frozen=True, eq=False)
class Scales:
    """Static scales of a cache in the shapes that `allocate_cache` takes; None where its formats have none."""

    k: Float32 | None
    v: Float32 | None


@dataclass(frozen=True, eq=False)
class Pair:
    """k f32[T, Hkv, D], v f32[T, Hkv, Dv] as `cache_write` is given them."""

    k: Float32
    v: Float32

    def reshaped(self, kind: str, rng: np.random.Generator, spec: CacheSpec, scales: Scales, dtype: str) -> Pair:
        """The same with values that try the quantizer: see `CacheWrite.x`."""
        k = _tried(kind, rng, self.k, spec.k, scales.k, dtype)
        return Pair(k, _values(spec, k) if spec.v is None else _tried(kind, rng, self.v, spec.v, scales.v, dtype))


def tokens(rng: np.random.Generator, spec: CacheSpec, dtype: str, count: int) -> Pair:
    """Tokens whose size differs by token, head and channel, so that a scale taken from a neighbour shows."""

    def draw(width: int) -> Float32:
        shape = (count, spec.num_kv_heads, width)
        size = np.exp2(rng.uniform(-3, 3, (count, spec.num_kv_heads, 1)) + rng.uniform(-1, 1, (1, 1, width)))
        return round_to(rng.standard_normal(shape) * size, dtype)

    k = draw(spec.head_dim_k)
    return Pair(k, _values(spec, k) if spec.v is None else draw(spec.head_dim_v))


def _values(spec: CacheSpec, k: Any) -> Any:
    """The values in the latent vectors k[T, 1, Dk]."""
    return k[..., : spec.head_dim_v]


def _tried(
    kind: str, rng: np.random.Generator, values: Float32, fmt: KVFormat, scale: Float32 | None, dtype: str
) -> Float32:
    values = values.copy()
    if kind == "nan" and fmt.granularity != "token_head" and fmt.code not in ("i8", "i4", "i2"):
        values[::3, :, ::5] = np.nan
    if kind == "range":
        values *= np.exp2(rng.uniform(-6, 6, (len(values), 1, 1)))
        values[1::4] = 0.0
    if kind in ("ties", "even"):
        # A row whose largest value is the largest code has scale 1 under token_head: halves are ties there.
        limit = int(min(fmt.max_code, 127))
        values = rng.integers(-limit, limit, values.shape) + 0.5
        values[:, :, 0] = limit
        if fmt.is_static:
            assert scale is not None
            values = values * (scale.reshape(-1, 1) if fmt.granularity == "head" else scale)
    return round_to(values, dtype)


def padded(values: Float32, skipped: npt.NDArray[np.bool_]) -> Float32:
    """NaN in the rows of skipped slots, and two rows of NaN after the last: none of it may be stored."""
    values = values.copy()
    values[skipped] = np.nan
    return np.concatenate([values, np.full((2, *values.shape[1:]), np.nan, np.float32)])


def calibrate(spec: CacheSpec, k: Float32, v: Float32) -> Scales:
    """Static scales under which the largest values of k and v saturate."""
    return Scales(static_scale(k, spec.k, _HEADROOM), None if spec.v is None else static_scale(v, spec.v, _HEADROOM))


def powers_of_two(scales: Scales) -> Scales:
    """Static scales by which nothing is rounded when a value is divided."""

    def nearest(scale: Float32 | None) -> Float32 | None:
        return None if scale is None else np.exp2(np.rint(np.log2(scale))).astype(np.float32)

    return Scales(nearest(scales.k), nearest(scales.v))


def allocate(bench: Bench, spec: CacheSpec, dtype: str, scales: Scales, layout: int = 0) -> Cache:
    """A cache every slot of which holds something that must never be seen: poison in its planes, and on top of it NaN
    or stale extremes, by way of `cache_write`. `Denied` where it can't be written."""
    try:
        bench.plan(Request(CacheWriteSpec(dtype), spec))
    except Denied:
        bench.check_no_cache(spec, scales.k, scales.v)
        raise
    cache = bench.allocate(spec, layout, scales.k, scales.v)
    shape = (spec.num_slots, spec.num_kv_heads)
    signs = np.where(np.arange(spec.num_slots) % 2 == 0, 1.0, -1.0)[:, None, None]
    k = np.broadcast_to(_stale(spec.k) * signs, (*shape, spec.head_dim_k))
    v = np.broadcast_to(_stale(spec.v or spec.k) * signs, (*shape, spec.head_dim_v))
    if all(plane.order is not None for plane in cache.layout.planes):
        return cache
    return write(bench, cache, dtype, np.arange(spec.num_slots), k.astype(np.float32), v.astype(np.float32))


def _stale(fmt: KVFormat) -> float:
    return np.nan if fmt.granularity == "none" else 1e4


def write(bench: Bench, cache: Cache, dtype: str, slots: Int64, k: Float32, v: Float32) -> Cache:
    """k, v f32[T, Hkv, D], representable in `dtype`, written at slots i64[T] (-1 skips)."""
    plan = bench.plan(Request(CacheWriteSpec(dtype), cache.spec, cache.layout), SlotBatch(slots))
    values = None if cache.spec.v is None else bench.put("v", v, dtype)
    written: Cache = bench.run(plan, cache, bench.put("k", k, dtype), values)
    return written


def read(bench: Bench, cache: Cache, slots: Int64, dtype: str = "f32") -> tuple[Float64, Float64]:
    """k, v f64[S, Hkv, D] as `cache_read` dequantizes them."""
    plan = bench.plan(Request(CacheReadSpec(dtype), cache.spec, cache.layout), SlotBatch(slots))
    k, v = bench.run(plan, cache)
    if (v is None) != (cache.spec.v is None):
        bench.fail(f"cache_read of a {cache.spec.kind} cache: v is {'none' if v is None else 'an array'}")
    keys = bench.get(k)
    return keys, _values(cache.spec, keys) if v is None else bench.get(v)


def expected(spec: CacheSpec, k: Float32, v: Float32, scales: Scales) -> tuple[Stored, Stored]:
    """What the pinned quantizer stores for k and v."""
    stored = store(k, spec.k, scales.k)
    return stored, stored.channels(spec.head_dim_v) if spec.v is None else store(v, spec.v, scales.v)


def judge(bench: Bench, name: str, got: Float64, want: Stored, dtype: str = "f32") -> Stored:
    """Hold what was read against what should be stored: the same codes, but for neighbours at a tie. Returns the codes
    that the cache turned out to hold."""
    held = want.as_read(got)
    values = held.values
    bench.compare(f"cache_read {name}", got, values, rounded_once(values, dtype), biased=False)
    return held
