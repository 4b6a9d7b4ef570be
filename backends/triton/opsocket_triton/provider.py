"""Which kernel serves which operator. Triton, and torch with it, are imported when one of them is picked."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
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
    MoECombineSpec,
    MoERouteSpec,
    MoESortSpec,
    Pick,
    Plan,
    Provider,
    QuantizeActivationSpec,
    Reason,
    Request,
    RMSNormSpec,
    RopeSpec,
    SampleSpec,
    SiluMulSpec,
    Spec,
    TakeRowsSpec,
)
from opsocket_triton import layouts
from opsocket_triton.attention import refusals as attention
from opsocket_triton.matmul import refusals as weights
from opsocket_triton.model import refusals as model


@dataclass(frozen=True)
class _Kernel:
    """module: below this package. refusals: why a request is not served, empty when it is; None: all are."""

    module: str
    plan: str
    refusals: Callable[[Request], tuple[Reason, ...]] | None = None


_KERNELS: Final[dict[type[Spec], _Kernel]] = {
    AddSpec: _Kernel("model.add", "TritonAdd"),
    RMSNormSpec: _Kernel("model.rms_norm", "TritonRMSNorm"),
    RopeSpec: _Kernel("model.rope", "TritonRope", model.rope),
    SiluMulSpec: _Kernel("model.silu_mul", "TritonSiluMul"),
    TakeRowsSpec: _Kernel("model.take_rows", "TritonTakeRows"),
    MoERouteSpec: _Kernel("model.moe_route", "TritonMoERoute", model.moe_route),
    MoESortSpec: _Kernel("model.moe_sort", "TritonMoESort"),
    MoECombineSpec: _Kernel("model.moe_combine", "TritonMoECombine"),
    ArgmaxSpec: _Kernel("model.argmax", "TritonArgmax"),
    SampleSpec: _Kernel("model.sample", "TritonSample", model.sample),
    CacheWriteSpec: _Kernel("cache.write", "TritonCacheWrite"),
    CacheReadSpec: _Kernel("cache.read", "TritonCacheRead"),
    CacheMoveSpec: _Kernel("cache.move", "TritonCacheMove"),
    CacheCopyBlocksSpec: _Kernel("cache.copy_blocks", "TritonCacheCopyBlocks"),
    AttentionSpec: _Kernel("attention.plan", "TritonAttention", attention.attention),
    MergeStatesSpec: _Kernel("attention.merge", "TritonMergeStates", attention.merge_states),
    MatmulSpec: _Kernel("matmul.matmul", "TritonMatmul", weights.refusals),
    GroupedMatmulSpec: _Kernel("matmul.grouped", "TritonGroupedMatmul", weights.refusals),
    EmbeddingSpec: _Kernel("matmul.embedding", "TritonEmbedding", weights.refusals),
    QuantizeActivationSpec: _Kernel("matmul.activation", "TritonQuantizeActivation"),
}


class TritonProvider(Provider):
    name = "triton"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        kernel = _KERNELS.get(type(request.spec))
        if kernel is None:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        if request.cache is not None and (reasons := layouts.refusals(request.cache, request.layout)):
            return reasons
        if kernel.refusals is not None and (reasons := kernel.refusals(request)):
            return reasons
        for package in ("torch", "triton"):
            if importlib.util.find_spec(package) is None:
                want = f"the package {package} installed: pip install 'opsocket[triton]'"
                return (Reason("package", package, None, want),)
        return Pick(_plan(kernel, device))

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.refusals(cache) else (layouts.pages(cache),)


def _plan(kernel: _Kernel, device: DeviceInfo) -> type[Plan]:
    if device.numerics == "interpreted":
        # Before the kernels' module is imported, which makes them for one mode or the other.
        from opsocket_triton import mode

        mode.interpret(device)
    module = importlib.import_module(f"opsocket_triton.{kernel.module}")
    plan: type[Plan] = getattr(module, kernel.plan)
    return plan
