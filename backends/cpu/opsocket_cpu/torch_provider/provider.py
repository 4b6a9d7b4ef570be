"""Which kernel serves which operator. Kernels, and torch with them, are imported when one of them is picked."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Final

from opsocket.operators import CacheLayout, CacheSpec, DeviceInfo, Pick, Provider, Reason, Request
from opsocket_cpu import layouts
from opsocket_cpu.torch_provider.refusals import refusals

_KERNELS: Final = {
    "attention": ("attention", "TorchAttention"),
    "merge_states": ("merge", "TorchMergeStates"),
    "cache_write": ("cache", "TorchCacheWrite"),
    "cache_read": ("cache", "TorchCacheRead"),
    "cache_move": ("cache", "TorchCacheMove"),
    "cache_copy_blocks": ("cache", "TorchCacheCopyBlocks"),
    "matmul": ("matmul", "TorchMatmul"),
    "grouped_matmul": ("matmul", "TorchGroupedMatmul"),
    "embedding": ("embedding", "TorchEmbedding"),
    "quantize_activation": ("activation", "TorchQuantizeActivation"),
}


class TorchProvider(Provider):
    name = "torch"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        if request.op not in _KERNELS:
            return (Reason("operator", "op", request.op, sorted(_KERNELS)),)
        reasons = refusals(request)
        if not reasons and importlib.util.find_spec("torch") is None:
            reasons = (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[cpu]'"),)
        if reasons:
            return reasons
        module, kernel = _KERNELS[request.op]
        return Pick(getattr(importlib.import_module(f"opsocket_cpu.torch_provider.{module}"), kernel))

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.refusals(cache) else (layouts.planar(cache),)
