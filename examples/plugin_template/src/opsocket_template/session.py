"""One opened device: where arrays live, and the only ways in and out of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opsocket.operators import (
    ArrayInfo,
    Cache,
    CacheLayout,
    CacheSpec,
    ContractError,
    Memory,
    ResourceError,
    Session,
    Unsupported,
    static_scale,
)
from opsocket_template import layouts
from opsocket_template.arrays import NAMES, dtype_of


class TemplateSession(Session):
    """`in_place`: kernels write to `out` and to caches. Where arrays never change: False, and return new ones."""

    array_type = np.ndarray
    in_place = True

    def allocate_cache(
        self,
        cache: CacheSpec,
        layout: CacheLayout | None = None,
        k_scale: np.ndarray | None = None,
        v_scale: np.ndarray | None = None,
    ) -> Cache:
        reasons = layouts.refusals(cache, layout)
        if reasons:
            raise Unsupported(reasons, request=cache, backend=str(self.device))
        scales = {"k_scale": static_scale("k", cache, k_scale), "v_scale": static_scale("v", cache, v_scale)}
        layout = layouts.paged(cache)
        need, have = cache.num_blocks * layout.bytes_per_block, self.device.memory_bytes
        if need > have:
            raise ResourceError("bytes of memory for the cache", need, have)
        planes = {plane.name: np.zeros(plane.shape, dtype_of(plane.dtype)) for plane in layout.planes}
        return Cache(cache, layout, planes, device=str(self.device), **scales)

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return np.empty(tuple(shape), dtype_of(dtype))

    def upload(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        """A copy, always: what the caller does to its own array later must not show here."""
        return np.array(array, dtype=None if dtype is None else dtype_of(dtype), order="C")

    def download(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def write(self, array: np.ndarray, values: np.ndarray) -> np.ndarray:
        if values.shape[1:] != array.shape[1:] or len(values) > len(array):
            raise ContractError("values", f"leading rows of shape {list(array.shape)}", list(values.shape))
        array[: len(values)] = values
        return array

    def view(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        reshaped = array.reshape(tuple(shape))
        if array.size and not np.may_share_memory(reshaped, array):
            raise ContractError("shape", f"a view of {array.shape} with strides {array.strides}", list(shape))
        return reshaped

    def split(self, array: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
        if sum(sizes) != array.shape[-1] or min(sizes) < 0:
            raise ContractError("sizes", f"sizes whose sum is the last of {list(array.shape)}", list(sizes))
        return tuple(np.split(array, np.cumsum(sizes)[:-1], axis=-1))

    def describe(self, array: np.ndarray) -> ArrayInfo:
        """Core checks every argument of every operator by this, before a kernel sees it."""
        if not isinstance(array, np.ndarray):
            raise ContractError("array", "a numpy.ndarray", type(array).__name__)
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return ArrayInfo(array.shape, NAMES.get(array.dtype, str(array.dtype)), strides, str(self.device))

    def synchronize(self) -> None:
        """Nothing is ever pending: every call has finished when it returns."""

    def memory(self) -> Memory:
        return Memory(used=None, total=self.device.memory_bytes)
