"""Which of the vendor's operators serves which request. Kernels, and torch with them, are imported when picked."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from opsocket.operators import (
    AttentionSpec,
    CacheLayout,
    CacheSpec,
    CacheWriteSpec,
    DeviceInfo,
    GroupedMatmulSpec,
    MatmulSpec,
    Pick,
    Plan,
    Provider,
    QuantizeActivationSpec,
    Reason,
    Request,
    RMSNormSpec,
    RopeSpec,
    SiluMulSpec,
    Spec,
)
from opsocket.quantization import get_format
from opsocket_ascend import layouts
from opsocket_ascend.socs import BY_GROUPS, soc_of
from opsocket_ascend.torch_npu_provider import refusals
from opsocket_ascend.torch_provider.refusals import dtype_refusals


@dataclass(frozen=True)
class _Kernel:
    """operators: of torch_npu, which the chip has to have."""

    module: str
    plan: str
    refusals: Callable[[Request], tuple[Reason, ...]]
    operators: tuple[str, ...] = ()


_W8A8: Final = {
    MatmulSpec: _Kernel("matmul", "NpuMatmulW8A8", refusals.matmul, ("npu_dynamic_quant", "npu_quant_matmul")),
    GroupedMatmulSpec: _Kernel(
        "grouped_matmul",
        "NpuGroupedMatmulW8A8",
        refusals.grouped_matmul,
        ("npu_dynamic_quant", "npu_grouped_matmul"),
    ),
}
_WEIGHT_ONLY: Final = {
    MatmulSpec: _Kernel("weight_only", "NpuMatmulWeightOnly", refusals.matmul, (BY_GROUPS,)),
    GroupedMatmulSpec: _Kernel(
        "grouped_matmul", "NpuGroupedMatmulWeightOnly", refusals.grouped_matmul, ("npu_grouped_matmul",)
    ),
}
_ATTENTION: Final = _Kernel(
    "attention",
    "NpuAttention",
    refusals.attention,
    ("npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2"),
)
_KERNELS: Final[dict[type[Spec], _Kernel]] = {
    AttentionSpec: _ATTENTION,
    CacheWriteSpec: _Kernel("cache_write", "NpuCacheWrite", refusals.cache_write, ("npu_scatter_pa_kv_cache",)),
    MatmulSpec: _Kernel("matmul", "NpuMatmul", refusals.matmul),
    GroupedMatmulSpec: _Kernel("grouped_matmul", "NpuGroupedMatmul", refusals.grouped_matmul, ("npu_grouped_matmul",)),
    QuantizeActivationSpec: _Kernel(
        "matmul", "NpuQuantizeActivation", refusals.quantize_activation, ("npu_dynamic_quant",)
    ),
    RopeSpec: _Kernel("rope", "NpuRope", refusals.rope, ("npu_rotary_mul",)),
    SiluMulSpec: _Kernel("silu_mul", "NpuSiluMul", refusals.silu_mul, ("npu_swiglu",)),
    RMSNormSpec: _Kernel("rms_norm", "NpuRMSNorm", refusals.rms_norm, ("npu_rms_norm",)),
}


class TorchNpuProvider(Provider):
    """The operators of torch_npu. It answers for absent devices too; a device that is opened has torch_npu."""

    name = "torch_npu"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        kernel = _kernel(request.spec)
        if kernel is None:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        reasons = dtype_refusals(device, request)
        soc = soc_of(device.arch)
        for operator in kernel.operators if soc is not None else ():
            if operator in soc.lacks:
                reasons += (Reason("chip", "device.arch", soc.name, f"a chip that has {operator}"),)
        if request.cache is not None:
            reasons += layouts.refusals(request.cache, request.layout)
        reasons = reasons or kernel.refusals(request)
        if not reasons and importlib.util.find_spec("torch") is None:
            reasons = (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[ascend]'"),)
        if reasons:
            return reasons
        module = importlib.import_module(f"opsocket_ascend.torch_npu_provider.{kernel.module}")
        plan: type[Plan] = getattr(module, kernel.plan)
        return Pick(plan)

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.refusals(cache) else (layouts.pages(cache),)


def _kernel(spec: Spec) -> _Kernel | None:
    """Of the products, the one for the weight's format, and where it has codes alone for x's type."""
    if not isinstance(spec, MatmulSpec | GroupedMatmulSpec):
        return _KERNELS.get(type(spec))
    fmt = get_format(spec.weight_format)
    if fmt.is_float:
        return _KERNELS[type(spec)]
    if fmt.activation != "none":
        return _W8A8[type(spec)]
    kernel = _WEIGHT_ONLY[type(spec)]
    if not fmt.block_k and isinstance(spec, MatmulSpec):
        kernel = replace(kernel, operators=("npu_weight_quant_batchmatmul",))
    return replace(kernel, plan=f"{kernel.plan}{spec.x_dtype.upper()}")
