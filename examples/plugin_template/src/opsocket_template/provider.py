"""Which kernel serves which operator. `supports`, `plan` and `opsocket explain` all ask here, and so agree."""

from __future__ import annotations

import importlib
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
from opsocket_template import layouts
from opsocket_template.refusals import refusals

KERNELS: Final[dict[type[Spec], tuple[str, str]]] = {
    AttentionSpec: ("attention", "Attention"),
    MergeStatesSpec: ("merge", "MergeStates"),
    CacheWriteSpec: ("cache", "CacheWrite"),
    CacheReadSpec: ("cache", "CacheRead"),
    CacheMoveSpec: ("cache", "CacheMove"),
    CacheCopyBlocksSpec: ("cache", "CacheCopyBlocks"),
    MatmulSpec: ("matmul", "Matmul"),
    GroupedMatmulSpec: ("matmul", "GroupedMatmul"),
    EmbeddingSpec: ("matmul", "Embedding"),
    QuantizeActivationSpec: ("matmul", "QuantizeActivation"),
    RMSNormSpec: ("model", "RMSNorm"),
    RopeSpec: ("model", "Rope"),
    SiluMulSpec: ("model", "SiluMul"),
    AddSpec: ("model", "Add"),
    TakeRowsSpec: ("model", "TakeRows"),
    MoERouteSpec: ("experts", "MoERoute"),
    MoESortSpec: ("experts", "MoESort"),
    MoECombineSpec: ("experts", "MoECombine"),
    ArgmaxSpec: ("sampling", "Argmax"),
    SampleSpec: ("sampling", "Sample"),
}
"""Module and class of each kernel. Begin with two or three lines, and add one as each kernel passes."""


class TemplateProvider(Provider):
    """A library of kernels. A backend may have several, and asks them in order."""

    name = "numpy"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        """Pure and cheap: it also answers for absent devices. A kernel's module is imported when it is picked."""
        if type(request.spec) not in KERNELS:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in KERNELS)),)
        reasons = refusals(request)
        if reasons:
            return reasons
        module, name = KERNELS[type(request.spec)]
        return Pick(getattr(importlib.import_module(f"opsocket_template.kernels.{module}"), name))

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.refusals(cache) else (layouts.paged(cache),)
