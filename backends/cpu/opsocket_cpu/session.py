"""One opened CPU: torch tensors in host memory."""

from __future__ import annotations

import math

import numpy as np
import torch

from opsocket.operators import (
    Backend,
    Cache,
    CacheLayout,
    CacheSpec,
    ContractError,
    DeviceInfo,
    Limit,
    Memory,
    ResourceError,
    SessionOptions,
    Unsupported,
    static_scale,
)
from opsocket.operators.torch_session import TORCH_DTYPES, TorchSession
from opsocket_cpu import host, layouts
from opsocket_cpu.native.library import library
from opsocket_cpu.untouched import Untouched

_CACHES = Untouched()


class CpuSession(TorchSession):
    """Arrays are CPU tensors; every operator has finished when its call returns.

    Opening one sets torch's threads, for the whole process, to `options.threads`, or to the cores that the process may
    run on.
    """

    def __init__(self, backend: Backend, device: DeviceInfo, options: SessionOptions) -> None:
        super().__init__(backend, device, options)
        if options.threads is not None and options.threads < 1:
            raise ContractError("threads", "at least 1, or None", options.threads)
        self.threads = options.threads or host.usable_cores()
        torch.set_num_threads(self.threads)
        self.library = library()

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
        layout = layout or layouts.layouts_of(cache)[0]
        scales = {
            "k_scale": self._scale(static_scale("k", cache, k_scale)),
            "v_scale": self._scale(static_scale("v", cache, v_scale)),
        }
        need, have = cache.num_blocks * layout.bytes_per_block, host.available_bytes()
        if need > have - _CACHES.size():  # what others have not touched yet is promised to them
            have = max(have - _CACHES.pending(), 0)
        if need > have:
            raise ResourceError("bytes of memory for the cache", need, have)
        planes = {p.name: self._zeros(p.shape, p.dtype) for p in layout.planes}
        return Cache(cache, layout, planes, device=str(self.device), **scales)

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def memory(self) -> Memory:
        return Memory(None, host.total_bytes())

    def limits(self) -> tuple[Limit, ...]:
        from opsocket_cpu.native.limits import measure

        return () if self.library is None else measure(self.library, self.threads)

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        size = math.prod(shape) * TORCH_DTYPES[dtype].itemsize
        if size < host.HUGE_BYTES:
            small: torch.Tensor = self.empty(shape, dtype)
            small.view(torch.uint8).zero_()
            return small
        try:
            memory = _CACHES.zeros(size)
        except OSError as error:
            raise ResourceError("bytes of memory for the cache", size, host.available_bytes()) from error
        return torch.from_numpy(memory).view(TORCH_DTYPES[dtype]).view(shape)

    @staticmethod
    def _scale(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values)
