"""One opened GPU: torch tensors in its memory, or in a simulated device's where its kernels are interpreted."""

from __future__ import annotations

import numpy as np
import torch

from opsocket.operators import (
    Backend,
    Cache,
    CacheLayout,
    CacheSpec,
    DeviceInfo,
    Limit,
    Memory,
    ResourceError,
    SessionOptions,
    Unsupported,
    static_scale,
)
from opsocket.operators.torch_session import TorchSession
from opsocket_simulated import memory as simulated
from opsocket_triton import layouts, mode
from opsocket_triton.cache.static_scales import PagedCache
from opsocket_triton.staging import StagingRing, StreamTransfers


class GpuSession(TorchSession):
    """Work is enqueued on torch's current stream of the device, AMD's too, which torch calls "cuda" as well."""

    _staging: StagingRing | None = None
    """Writes go by way of it on a chip; interpreted, the device is the host's own memory, or a copy runs at once."""

    def __init__(self, backend: Backend, device: DeviceInfo, options: SessionOptions) -> None:
        super().__init__(backend, device, options)
        self.is_interpreted = device.numerics == "interpreted"
        if self.is_interpreted:
            mode.interpret(device)
            self.torch_device = _interpreted_memory(device)
        else:
            mode.check_compiles(device)
            self.torch_device = torch.device("cuda", device.index)
            torch.cuda.set_device(self.torch_device)
            self._staging = StagingRing(StreamTransfers(self.torch_device))

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
        layout = layouts.pages(cache)
        scales = static_scale("k", cache, k_scale), static_scale("v", cache, v_scale)
        need, have = cache.num_blocks * layout.bytes_per_block, self._free_bytes()
        if need > have:
            raise ResourceError("bytes of device memory for the cache", need, have)
        planes = {plane.name: self.empty(plane.shape, plane.dtype) for plane in layout.planes}
        on_device = (None if values is None else self.upload(values) for values in scales)
        return PagedCache(cache, layout, planes, *on_device, device=str(self.device), host_scales=scales)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if self._staging is None:
            super()._copy(target, source)
        else:
            self._staging.write(target, source)

    def synchronize(self) -> None:
        if self.torch_device.type != "cpu":
            torch.get_device_module(self.torch_device).synchronize(self.torch_device)

    def memory(self) -> Memory:
        if self.torch_device.type == "cpu":
            return Memory(None, self.device.memory_bytes)
        used: int = torch.get_device_module(self.torch_device).memory_allocated(self.torch_device)
        return Memory(used, self.device.memory_bytes)

    def limits(self) -> tuple[Limit, ...]:
        if self.is_interpreted:
            return ()
        from opsocket_triton.limits import measure

        return measure(self)

    def _free_bytes(self) -> int:
        if self.is_interpreted:
            return self.device.memory_bytes - (self.memory().used or 0)
        free: int = torch.cuda.mem_get_info(self.torch_device)[0]
        return free


def _interpreted_memory(device: DeviceInfo) -> torch.device:
    """A simulated device, or the host where `mode.notes` says why there is none."""
    if mode.unprotected() or simulated.absence():
        return torch.device("cpu")
    return simulated.device(str(device), device.memory_bytes)
