"""One opened CPU: torch tensors in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from opsocket.operators import (
    Backend,
    Cache,
    CacheLayout,
    CacheSpec,
    ContractError,
    DeviceInfo,
    KVFormat,
    Memory,
    ResourceError,
    SessionOptions,
    Unsupported,
)
from opsocket.operators.torch_session import TorchSession
from opsocket_cpu import host, layouts


class CpuSession(TorchSession):
    """Arrays are CPU tensors; every operator has finished when its call returns.

    Opening one sets torch's threads, for the whole process, to `options.threads`, or to the cores that the process may
    run on.
    """

    def __init__(self, backend: Backend, device: DeviceInfo, options: SessionOptions) -> None:
        super().__init__(backend, device, options)
        if options.threads is not None and options.threads < 1:
            raise ContractError("threads", "at least 1, or None", options.threads)
        torch.set_num_threads(options.threads or host.usable_cores())

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
        layout = layouts.planar(cache)
        scales = {
            "k_scale": self._static_scale("k_scale", cache.k, k_scale, cache.num_kv_heads, cache.head_dim_k),
            "v_scale": self._static_scale("v_scale", cache.v, v_scale, cache.num_kv_heads, cache.head_dim_v),
        }
        need, have = cache.num_blocks * layout.bytes_per_block, host.available_bytes()
        if need > have:
            raise ResourceError("bytes of memory for the cache", need, have)
        # Zeroed rather than left alone: only touched pages count against what the next allocation finds available.
        planes = {p.name: self._zeros(p.shape, p.dtype) for p in layout.planes}
        return Cache(cache, layout, planes, device=str(self.device), **scales)

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def memory(self) -> Memory:
        return Memory(None, host.total_bytes())

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        array: torch.Tensor = self.empty(shape, dtype)
        array.view(torch.uint8).zero_()
        return array

    def _static_scale(
        self, name: str, fmt: KVFormat | None, scale: Any, num_heads: int, head_dim: int
    ) -> torch.Tensor | None:
        if fmt is None or not fmt.is_static:
            if scale is not None:
                raise ContractError(name, "None: the format has no static scale", "an array")
            return None
        if scale is None:
            raise ContractError(name, f"f32 scales for granularity {fmt.granularity!r}", None)
        shape = {"tensor": (1,), "head": (num_heads,), "channel": (num_heads, head_dim)}[fmt.granularity]
        values = np.asarray(scale)
        if values.dtype != np.float32 or values.shape != shape:
            raise ContractError(name, f"f32 {list(shape)}", f"{values.dtype} {list(values.shape)}")
        good = np.isfinite(values) & (values > 0)
        if not good.all():
            raise ContractError(name, "positive finite numbers", float(values[~good][0]))
        return torch.from_numpy(values.copy())
