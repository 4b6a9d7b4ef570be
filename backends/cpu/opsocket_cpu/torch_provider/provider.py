"""Which kernel serves which operator. Kernels, and torch with them, are imported when one of them is picked."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Final

from opsocket.operators import (
    AttentionSpec,
    CacheCopyBlocksSpec,
    CacheLayout,
    CacheMoveSpec,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    DeviceInfo,
    EmbeddingSpec,
    GroupedMatmulSpec,
    MatmulSpec,
    MergeStatesSpec,
    Pick,
    Provider,
    QuantizeActivationSpec,
    Reason,
    Request,
    Spec,
)
from opsocket_cpu import layouts
from opsocket_cpu.torch_provider.refusals import reads_tiles, refusals

_KERNELS: Final[dict[type[Spec], tuple[str, str]]] = {
    AttentionSpec: ("attention", "TorchAttention"),
    MergeStatesSpec: ("merge", "TorchMergeStates"),
    CacheWriteSpec: ("cache", "TorchCacheWrite"),
    CacheReadSpec: ("cache", "TorchCacheRead"),
    CacheMoveSpec: ("cache", "TorchCacheMove"),
    CacheCopyBlocksSpec: ("cache", "TorchCacheCopyBlocks"),
    MatmulSpec: ("matmul", "TorchMatmul"),
    GroupedMatmulSpec: ("matmul", "TorchGroupedMatmul"),
    EmbeddingSpec: ("embedding", "TorchEmbedding"),
    QuantizeActivationSpec: ("activation", "TorchQuantizeActivation"),
}


class TorchProvider(Provider):
    name = "torch"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        kernel = _KERNELS.get(type(request.spec))
        if kernel is None:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        reasons = refusals(request)
        if not reasons and importlib.util.find_spec("torch") is None:
            reasons = (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[cpu]'"),)
        if reasons:
            return reasons
        module, name = kernel
        plan = getattr(importlib.import_module(f"opsocket_cpu.torch_provider.{module}"), name)
        return Pick(plan, "composed" if reads_tiles(request) else "native")

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.planar_refusals(cache) else (layouts.planar(cache),)
