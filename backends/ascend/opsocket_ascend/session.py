"""One opened NPU: torch tensors in its memory, by torch_npu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from opsocket.operators import (
    Array,
    Backend,
    Cache,
    CacheLayout,
    CacheSpec,
    ContractError,
    DeviceInfo,
    Memory,
    PluginError,
    ResourceError,
    SessionOptions,
    Unsupported,
    static_scale,
)
from opsocket.operators.torch_session import TorchSession
from opsocket_ascend import layouts, scales
from opsocket_ascend.graph_tasks import Tasks
from opsocket_ascend.vendor import torch_npu_for


class NpuSession(TorchSession):
    """Work is enqueued on torch's current stream of the device. Products of f32 are kept in f32 (no HF32).

    tasks: of the graph that CANN is recording, where kernels leave what a replay has to renew. graph_room: what its
    graphs share (`recorded`).
    """

    tasks: Tasks | None = None
    graph_room: Any = None

    def __init__(self, backend: Backend, device: DeviceInfo, options: SessionOptions) -> None:
        super().__init__(backend, device, options)
        torch_npu_for(device)
        self.torch_device = torch.device("npu", device.index)
        try:
            torch.npu.set_device(self.torch_device)
        except RuntimeError as error:
            cause = f"the NPU does not open: {_told(error)}"
            raise PluginError("opened", str(device), cause, hint="npu-smi info shows which process holds it") from None
        torch.npu.matmul.allow_hf32 = False

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
        static = {
            "k_scale": scales.put(self, static_scale("k", cache, k_scale)),
            "v_scale": scales.put(self, static_scale("v", cache, v_scale)),
        }
        need, have = cache.num_blocks * layout.bytes_per_block, torch.npu.mem_get_info(self.torch_device)[0]
        if need > have:
            raise ResourceError("bytes of device memory for the cache", need, have)
        planes = {plane.name: self.empty(plane.shape, plane.dtype) for plane in layout.planes}
        return Cache(cache, layout, planes, device=str(self.device), **static)

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        _check_dtype(dtype)
        return super().empty(shape, dtype)

    def upload(self, array: np.ndarray, dtype: str | None = None) -> Array:
        _check_dtype(dtype or str(np.asarray(array).dtype))
        return super().upload(array, dtype)

    def synchronize(self) -> None:
        torch.npu.synchronize(self.torch_device)

    def memory(self) -> Memory:
        return Memory(torch.npu.memory_allocated(self.torch_device), self.device.memory_bytes)


def _check_dtype(dtype: str) -> None:
    """torch_npu takes f64 and makes f32 of it."""
    if dtype in ("f64", "float64"):
        raise ContractError("dtype", "a dtype that an NPU has", "'f64'")


def _told(error: RuntimeError) -> str:
    """What torch_npu and CANN say of a failure, without the lines that only name the process."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("[ERROR]"))
