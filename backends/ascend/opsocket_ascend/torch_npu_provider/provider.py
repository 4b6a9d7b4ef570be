"""Which of the vendor's operators serves which request. Kernels, and torch with them, are imported when picked."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opsocket.operators import (
    AttentionSpec,
    CacheLayout,
    CacheSpec,
    CacheWriteSpec,
    DeviceInfo,
    MatmulSpec,
    Pick,
    Plan,
    Provider,
    QuantizeActivationSpec,
    Reason,
    Request,
    RMSNormSpec,
    Spec,
)
from opsocket.quantization import get_format
from opsocket_ascend import layouts
from opsocket_ascend.torch_npu_provider import refusals
from opsocket_ascend.torch_provider.refusals import dtype_refusals


@dataclass(frozen=True)
class _Kernel:
    module: str
    plan: str
    refusals: Callable[[Request], tuple[Reason, ...]]


_KERNELS: Final[dict[type[Spec], _Kernel]] = {
    AttentionSpec: _Kernel("attention", "NpuAttention", refusals.attention),
    CacheWriteSpec: _Kernel("cache_write", "NpuCacheWrite", refusals.cache_write),
    MatmulSpec: _Kernel("matmul", "NpuMatmul", refusals.matmul),
    QuantizeActivationSpec: _Kernel("matmul", "NpuQuantizeActivation", refusals.quantize_activation),
    RMSNormSpec: _Kernel("rms_norm", "NpuRMSNorm", refusals.rms_norm),
}


class TorchNpuProvider(Provider):
    """The operators of torch_npu. It answers for absent devices too; a device that is opened has torch_npu."""

    name = "torch_npu"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        kernel = _KERNELS.get(type(request.spec))
        if kernel is None:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        reasons = dtype_refusals(device, request)
        if request.cache is not None:
            reasons += layouts.refusals(request.cache, request.layout)
        reasons = reasons or kernel.refusals(request)
        if not reasons and importlib.util.find_spec("torch") is None:
            reasons = (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[ascend]'"),)
        if reasons:
            return reasons
        module = importlib.import_module(f"opsocket_ascend.torch_npu_provider.{kernel.module}")
        plan: type[Plan] = getattr(module, kernel.plan + _variant(request.spec))
        return Pick(plan)

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.refusals(cache) else (layouts.pages(cache),)


def _variant(spec: Spec) -> str:
    """Which of the products, by the weight's format."""
    if not isinstance(spec, MatmulSpec) or get_format(spec.weight_format).is_float:
        return ""
    return "W8A8" if get_format(spec.weight_format).activation != "none" else "W4A16"
