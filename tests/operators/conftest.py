"""A small complete backend over NumPy arrays: core's own rules are tested without any framework, in or out of place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from opsocket.operators import (
    AddPlan,
    AddSpec,
    ArrayInfo,
    AttentionPlan,
    AttentionSpec,
    Backend,
    BackendInfo,
    Cache,
    CacheLayout,
    CacheReadPlan,
    CacheReadSpec,
    CacheSpec,
    CacheWritePlan,
    CacheWriteSpec,
    ContractError,
    DeviceInfo,
    Memory,
    Pick,
    Plane,
    Provider,
    Reason,
    Request,
    Session,
    SessionOptions,
    Unsupported,
    dtype_info,
)

_DTYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "i8": np.int8}
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items()}


class _Add(AddPlan):
    def _run(self, a, b, out):
        if np.isinf(a).any():
            raise FloatingPointError("this kernel does not like infinities")
        return np.add(a, b, out=out)


class _Write(CacheWritePlan):
    def _run(self, cache, k, v):
        slots = np.asarray(self.batch.slots)
        planes = {name: plane.copy() for name, plane in cache.planes.items()}
        for name, values in (("k", k), ("v", v)):
            planes[name].reshape(-1, *values.shape[1:])[slots[slots >= 0]] = values[: len(slots)][slots >= 0]
        return cache.with_planes(planes)


class _Read(CacheReadPlan):
    def _run(self, cache):
        slots = np.asarray(self.batch.slots)
        k, v = (cache.planes[name].reshape(-1, *cache.planes[name].shape[2:])[slots] for name in ("k", "v"))
        return k, v


class _Attention(AttentionPlan):
    """Accepts every batch: what is tested here is what core lets through to it."""

    def _run(self, q, kv, sinks, alibi, tree_mask, out, lse_out):
        return np.zeros((q.shape[0], self.spec.num_q_heads, self.spec.head_dim_vo), np.float32), None


class NumpyProvider(Provider):
    name = "numpy"

    def pick(self, device, request):
        spec = request.spec
        if isinstance(spec, AddSpec):
            if spec.width > 4096:
                return (Reason("width", "width", spec.width, "at most 4096"),)
            return Pick(_Add)
        if isinstance(spec, AttentionSpec):
            return Pick(_Attention)
        if isinstance(spec, CacheWriteSpec | CacheReadSpec):
            if request.cache.k.code != "f32":
                return (Reason("kv_code", "cache.k.code", request.cache.k.code, ["f32"]),)
            return Pick(_Write if isinstance(spec, CacheWriteSpec) else _Read)
        return (Reason("op", "op", request.op, ["add", "attention", "cache_write", "cache_read"]),)

    def layouts(self, device, cache):
        if cache.k.code != "f32" or cache.v is None or cache.v.code != "f32":
            return ()
        head = (cache.num_blocks, cache.block_size, cache.num_kv_heads)
        order = ("block", "token", "head", "dim")
        planes = (
            Plane("k", (*head, cache.head_dim_k), "f32", order),
            Plane("v", (*head, cache.head_dim_v), "f32", order),
        )
        each = cache.block_size * cache.num_kv_heads * (cache.head_dim_k + cache.head_dim_v) * 4
        return (CacheLayout("numpy-bthd", planes, cache.block_size, each),)


class NumpySession(Session):
    array_type = np.ndarray
    in_place = False

    def allocate_cache(self, cache: CacheSpec, layout=None, k_scale=None, v_scale=None) -> Cache:
        layouts = self.cache_layouts(cache)
        if not layouts:
            raise Unsupported([Reason("kv_code", "cache.k.code", cache.k.code, ["f32"])])
        layout = layout or layouts[0]
        planes = {p.name: np.full(p.shape, np.nan, _DTYPES[p.dtype]) for p in layout.planes}
        return Cache(cache, layout, planes)

    def empty(self, shape: Sequence[int], dtype: str):
        return np.empty(tuple(shape), _DTYPES[dtype_info(dtype).name])

    def upload(self, array, dtype=None):
        return np.array(array, dtype=_DTYPES[dtype] if dtype else None)

    def download(self, array):
        return array.copy()

    def write(self, array, values):
        array[: len(values)] = values
        return array

    def view(self, array, shape):
        return array.reshape(tuple(shape))

    def split(self, array, sizes):
        return tuple(np.split(array, np.cumsum(sizes)[:-1], axis=-1))

    def describe(self, array):
        if not isinstance(array, np.ndarray):
            raise ContractError("array", "a numpy.ndarray", type(array).__name__)
        strides = tuple(s // array.itemsize for s in array.strides)
        return ArrayInfo(array.shape, _NAMES.get(array.dtype, str(array.dtype)), strides, str(self.device))

    def synchronize(self):
        return None

    def memory(self):
        return Memory(None, 1 << 30)


class NumpyBackend(Backend):
    info = BackendInfo("numpy", "1.0", ">=1.0,<2", "the tests")

    def devices(self):
        return [DeviceInfo("numpy", 0, "host", "any", 1 << 30)]

    def providers(self):
        return [NumpyProvider()]

    def open(self, device, options):
        return NumpySession(self, device, options)


@pytest.fixture
def backend() -> NumpyBackend:
    return NumpyBackend()


@pytest.fixture
def session(backend) -> NumpySession:
    return backend.open(backend.devices()[0], SessionOptions(checked="deep"))


@pytest.fixture
def plan(session):
    """plan(spec, **request) -> a plan on the NumPy session."""
    return lambda spec, batch=None, **kwargs: session.plan(Request(spec, **kwargs), batch)
