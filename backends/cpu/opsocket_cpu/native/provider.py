"""Which native kernel serves which operator, and why not where none does. Imports no framework to say no."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
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
from opsocket.quantization import get_format
from opsocket_cpu import layouts
from opsocket_cpu.native import refusals
from opsocket_cpu.native.library import absence

_KERNELS: Final[dict[type[Spec], tuple[str, str, Callable[[Request], tuple[Reason, ...]]]]] = {
    AddSpec: ("add", "NativeAdd", refusals.nothing),
    SiluMulSpec: ("silu_mul", "NativeSiluMul", refusals.nothing),
    RMSNormSpec: ("rms_norm", "NativeRMSNorm", refusals.nothing),
    RopeSpec: ("rope", "NativeRope", refusals.rope),
    TakeRowsSpec: ("take_rows", "NativeTakeRows", refusals.nothing),
    ArgmaxSpec: ("argmax", "NativeArgmax", refusals.nothing),
    SampleSpec: ("sample", "NativeSample", refusals.nothing),
    QuantizeActivationSpec: ("quantize_activation", "NativeQuantizeActivation", refusals.columns),
    EmbeddingSpec: ("embedding", "NativeEmbedding", refusals.weight),
    MatmulSpec: ("matmul_a16", "NativeMatmulA16", refusals.matmul_a16),
    GroupedMatmulSpec: ("matmul_a16", "NativeGroupedMatmulA16", refusals.matmul_a16),
    AttentionSpec: ("attention", "NativeAttention", refusals.attention),
    MergeStatesSpec: ("merge_states", "NativeMergeStates", refusals.nothing),
    MoERouteSpec: ("experts", "NativeMoERoute", refusals.nothing),
    MoESortSpec: ("experts", "NativeMoESort", refusals.nothing),
    MoECombineSpec: ("experts", "NativeMoECombine", refusals.nothing),
    CacheWriteSpec: ("cache", "NativeCacheWrite", refusals.cache),
    CacheReadSpec: ("cache", "NativeCacheRead", refusals.cache),
    CacheMoveSpec: ("cache", "NativeCacheMove", refusals.cache),
    CacheCopyBlocksSpec: ("cache", "NativeCacheCopyBlocks", refusals.cache),
}
"""Spec -> module, class, and what this provider refuses of it."""

_A8_KERNELS: Final[dict[type[Spec], tuple[str, str, Callable[[Request], tuple[Reason, ...]]]]] = {
    MatmulSpec: ("matmul_a8", "NativeMatmulA8", refusals.matmul_a8),
    GroupedMatmulSpec: ("matmul_a8", "NativeGroupedMatmulA8", refusals.matmul_a8),
}
"""The same, for products whose format has int8 activations."""


class NativeProvider(Provider):
    """This project's own kernels. Layouts of weights and caches are its own too."""

    name = "native"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        missing = absence()
        if missing is not None:
            return (Reason("library", "native", missing, "native kernels, built when opsocket is installed"),)
        kernels = _A8_KERNELS if _has_int8_activations(request.spec) else _KERNELS
        if type(request.spec) not in kernels:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        module, name, refuse = kernels[type(request.spec)]
        reasons = refuse(request)
        if not reasons and importlib.util.find_spec("torch") is None:
            reasons = (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[cpu]'"),)
        return reasons or Pick(getattr(importlib.import_module(f"opsocket_cpu.native.{module}"), name))

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if absence() is not None or layouts.tiled_refusals(cache) else (layouts.tiled(cache),)


def _has_int8_activations(spec: Spec) -> bool:
    return isinstance(spec, MatmulSpec | GroupedMatmulSpec) and get_format(spec.weight_format).activation != "none"
