"""The four operators over a KV cache, and the cache itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from opsocket.operators.device import Array
from opsocket.operators.dtypes import check_float
from opsocket.operators.errors import ContractError
from opsocket.operators.layout import CacheLayout, CacheSpec
from opsocket.operators.plan import Plan
from opsocket.operators.request import Request, Spec
from opsocket.operators.validate import check_array, check_bound, check_slots, host_ints


@dataclass(frozen=True, eq=False)
class Cache:
    """One layer's keys and values on a device. planes: the layout's arrays by name. k_scale, v_scale: static scales.

    Where a session is not `in_place`, operators return a new `Cache` that replaces the one given.
    """

    spec: CacheSpec
    layout: CacheLayout
    planes: Mapping[str, Array]
    k_scale: Array | None = None
    v_scale: Array | None = None
    device: str = field(default="")

    def with_planes(self, planes: Mapping[str, Array]) -> Cache:
        return replace(self, planes=planes)


def check_cache(name: str, cache: object, request: Request) -> Cache:
    """A cache of the spec and layout that the request was planned for; never guessed from shapes."""
    if not isinstance(cache, Cache):
        raise ContractError(name, "a Cache", type(cache).__name__)
    if cache.spec is not request.cache and cache.spec != request.cache:
        raise ContractError(name, f"a cache of {request.cache}", f"{cache.spec}")
    if request.layout is not None and cache.layout != request.layout:
        raise ContractError(name, f"layout {request.layout.id!r}", f"layout {cache.layout.id!r}")
    return cache


def static_scale(name: Literal["k", "v"], cache: CacheSpec, scale: object) -> np.ndarray | None:
    """A copy of the f32 scale that `allocate_cache` was given for K or V: [1], [Hkv] or [Hkv, D] by granularity.

    None where the format has no static scale. `ContractError` where one is missing, too many, or no positive numbers.
    """
    fmt, dim = (cache.k, cache.head_dim_k) if name == "k" else (cache.v, cache.head_dim_v)
    if fmt is None or not fmt.is_static:
        if scale is not None:
            raise ContractError(f"{name}_scale", "None: the format has no static scale", "an array")
        return None
    if scale is None:
        raise ContractError(f"{name}_scale", f"f32 scales for granularity {fmt.granularity!r}", None)
    shapes = {"tensor": (1,), "head": (cache.num_kv_heads,), "channel": (cache.num_kv_heads, dim)}
    values, shape = np.asarray(scale), shapes[fmt.granularity]
    if values.dtype != np.float32 or values.shape != shape:
        raise ContractError(f"{name}_scale", f"f32 {list(shape)}", f"{values.dtype} {list(values.shape)}")
    good = np.isfinite(values) & (values > 0)
    if not good.all():
        raise ContractError(f"{name}_scale", "positive finite numbers", float(values[~good][0]))
    return values.copy()


@dataclass(frozen=True, eq=False)
class SlotBatch:
    """slots i64[T]: block * block_size + offset of each token. -1 skips a token on write."""

    slots: np.ndarray


@dataclass(frozen=True, eq=False)
class MoveBatch:
    """src_slots, dst_slots i64[N]: token src_slots[i] goes to dst_slots[i], all as if buffered first."""

    src_slots: np.ndarray
    dst_slots: np.ndarray


@dataclass(frozen=True, eq=False)
class BlockPairs:
    """pairs i64[P, 2]: whole block pairs[i, 0] of the source to block pairs[i, 1] of the destination."""

    pairs: np.ndarray


@dataclass(frozen=True)
class CacheWriteSpec(Spec):
    """dtype: of k and v as they come."""

    op: ClassVar[str] = "cache_write"
    uses_cache: ClassVar[str] = "always"
    dtype: str = "f32"

    def __post_init__(self) -> None:
        check_float(self.dtype, "dtype")


@dataclass(frozen=True)
class CacheReadSpec(Spec):
    """dtype: of k and v as they leave, after dequantization."""

    op: ClassVar[str] = "cache_read"
    uses_cache: ClassVar[str] = "always"
    dtype: str = "f32"

    def __post_init__(self) -> None:
        check_float(self.dtype, "dtype")


@dataclass(frozen=True)
class CacheMoveSpec(Spec):
    op: ClassVar[str] = "cache_move"
    uses_cache: ClassVar[str] = "always"


@dataclass(frozen=True)
class CacheCopyBlocksSpec(Spec):
    op: ClassVar[str] = "cache_copy_blocks"
    uses_cache: ClassVar[str] = "always"


class _CachePlan(Plan):
    @property
    def cache_spec(self) -> CacheSpec:
        assert self.request.cache is not None
        return self.request.cache


class CacheWritePlan(_CachePlan):
    """run(cache, k[T, Hkv, Dk], v[T, Hkv, Dv]) -> cache. Batch: `SlotBatch`; quantizes on write.

    kind "latent": k[T, 1, Dk] are the latent vectors, v is None, and a token_head scale is that of the whole vector.
    """

    spec_type = CacheWriteSpec
    batch_type = SlotBatch

    def _validate_batch(self, batch: Any) -> None:
        slots = host_ints("slots", batch.slots, (None,))
        check_bound("slots", "tokens", slots.size, self.request.bounds.max_tokens)
        check_slots("slots", slots, self.cache_spec.num_slots, unique=True, skip=True)

    def run(self, cache: Cache, k: Array, v: Array | None) -> Cache:
        check_cache("cache", cache, self.request)
        spec = self.cache_spec
        dtype = getattr(self.request.spec, "dtype")  # noqa: B009  (a Spec has no dtype; this one has)
        rows = check_array(self.session, "k", k, dtype, (None, spec.num_kv_heads, spec.head_dim_k))[0]
        if (v is None) != (spec.v is None):
            raise ContractError(
                "v", "None for a latent cache" if spec.v is None else "values", v if v is None else "an array"
            )
        if v is not None:
            check_array(self.session, "v", v, dtype, (rows, spec.num_kv_heads, spec.head_dim_v))
        result: Cache = self._call(self._run, cache, k, v, room=(rows,))
        return result

    def _check_room(self, batch: Any, *room: Any) -> None:
        if room[0] < len(batch.slots):
            raise ContractError("k", f"at least {len(batch.slots)} rows, one for each slot", room[0])

    @abstractmethod
    def _run(self, cache: Cache, k: Array, v: Array | None) -> Cache: ...


class CacheReadPlan(_CachePlan):
    """run(cache) -> k[S, Hkv, Dk], v[S, Hkv, Dv], dequantized, in the order of the batch's slots.

    kind "latent": v is None; the values are k[..., :head_dim_v].
    """

    spec_type = CacheReadSpec
    batch_type = SlotBatch

    def _validate_batch(self, batch: Any) -> None:
        slots = host_ints("slots", batch.slots, (None,))
        check_bound("slots", "tokens", slots.size, self.request.bounds.max_tokens)
        check_slots("slots", slots, self.cache_spec.num_slots, unique=False, skip=False)

    def run(self, cache: Cache) -> tuple[Array, Array | None]:
        check_cache("cache", cache, self.request)
        rows = 0 if self.batch is None else len(self.batch.slots)
        result: tuple[Array, Array | None] = self._call(self._run, cache, room=(rows,))
        return result

    def _check_room(self, batch: Any, *room: Any) -> None:
        if len(batch.slots) > room[0]:
            raise ContractError("slots", f"at most {room[0]}, the rows that a captured run returned", len(batch.slots))

    @abstractmethod
    def _run(self, cache: Cache) -> tuple[Array, Array | None]: ...


class CacheMovePlan(_CachePlan):
    """run(src, dst) -> dst, bit-exact; src and dst may be one cache. Batch: `MoveBatch`, each dst slot at most once."""

    spec_type = CacheMoveSpec
    batch_type = MoveBatch

    def _validate_batch(self, batch: Any) -> None:
        src = host_ints("src_slots", batch.src_slots, (None,))
        dst = host_ints("dst_slots", batch.dst_slots, (src.size,))
        check_bound("src_slots", "tokens", src.size, self.request.bounds.max_tokens)
        check_slots("src_slots", src, self.cache_spec.num_slots, unique=False, skip=False)
        check_slots("dst_slots", dst, self.cache_spec.num_slots, unique=True, skip=False)

    def run(self, src: Cache, dst: Cache) -> Cache:
        check_cache("src", src, self.request)
        check_cache("dst", dst, self.request)
        result: Cache = self._call(self._run, src, dst)
        return result

    @abstractmethod
    def _run(self, src: Cache, dst: Cache) -> Cache: ...


class CacheCopyBlocksPlan(_CachePlan):
    """run(src, dst) -> dst, bit-exact, whole blocks, as if buffered. The layouts must match, the sizes need not.

    The request's cache is the destination's; the source may differ in num_blocks only.
    """

    spec_type = CacheCopyBlocksSpec
    batch_type = BlockPairs

    def _validate_batch(self, batch: Any) -> None:
        pairs = host_ints("pairs", batch.pairs, (None, 2), low=0)
        check_slots("pairs[:, 1]", pairs[:, 1], self.cache_spec.num_blocks, unique=True, skip=False)

    def run(self, src: Cache, dst: Cache) -> Cache:
        check_cache("dst", dst, self.request)
        if not isinstance(src, Cache):
            raise ContractError("src", "a Cache", type(src).__name__)
        if replace(src.spec, num_blocks=dst.spec.num_blocks) != dst.spec or src.layout.id != dst.layout.id:
            raise ContractError("src", f"{dst.spec} in layout {dst.layout.id!r}", f"{src.spec} in {src.layout.id!r}")
        result: Cache = self._call(self._run, src, dst, room=(src.spec.num_blocks,))
        return result

    def _check_room(self, batch: Any, *room: Any) -> None:
        check_slots("pairs[:, 0]", np.asarray(batch.pairs)[:, 0], room[0], unique=False, skip=False)

    @abstractmethod
    def _run(self, src: Cache, dst: Cache) -> Cache: ...
