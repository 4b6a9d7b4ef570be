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
    RopeSpec,
    SampleSpec,
    Spec,
)
from opsocket_ascend import layouts
from opsocket_ascend.torch_provider.refusals import refusals

_KERNELS: Final[dict[type[Spec], tuple[str, str]]] = {
    AttentionSpec: ("attention", "TorchAttention"),
    MergeStatesSpec: ("merge", "TorchMergeStates"),
    CacheWriteSpec: ("cache", "TorchCacheWrite"),
    CacheReadSpec: ("cache", "TorchCacheRead"),
    CacheMoveSpec: ("cache", "TorchCacheMove"),
    CacheCopyBlocksSpec: ("cache", "TorchCacheCopyBlocks"),
    MatmulSpec: ("matmul", "TorchMatmul"),
    GroupedMatmulSpec: ("matmul", "TorchGroupedMatmul"),
    EmbeddingSpec: ("matmul", "TorchEmbedding"),
    QuantizeActivationSpec: ("activation", "TorchQuantizeActivation"),
    RopeSpec: ("rope", "TorchRope"),
    SampleSpec: ("sampling", "TorchSample"),
}


class TorchProvider(Provider):
    """In tier "composed": every operator of it is several of torch's."""

    name = "torch"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        kernel = _KERNELS.get(type(request.spec))
        if kernel is None:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        reasons = refusals(device, request)
        if not reasons and importlib.util.find_spec("torch") is None:
            reasons = (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[ascend]'"),)
        if reasons:
            return reasons
        module, name = kernel
        plan = getattr(importlib.import_module(f"opsocket_ascend.torch_provider.{module}"), name)
        return Pick(plan, "composed")

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.refusals(cache) else (layouts.pages(cache),)
