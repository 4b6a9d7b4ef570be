"""Which of our own kernels serves which request. Triton, and torch with it, are imported when one of them is picked."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opsocket.operators import (
    CacheLayout,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    DeviceInfo,
    MergeStatesSpec,
    MoECombineSpec,
    MoERouteSpec,
    Pick,
    Plan,
    Provider,
    QuantizeActivationSpec,
    Reason,
    Request,
    Spec,
)
from opsocket_ascend import layouts
from opsocket_ascend.torch_provider.refusals import dtype_refusals
from opsocket_ascend.triton_provider import refusals
from opsocket_ascend.triton_provider.targets import VECTOR_CORES, has_compilers


@dataclass(frozen=True)
class _Kernel:
    """module: whole; the GPU backends' own where their kernel is lowered as it is."""

    module: str
    plan: str
    refusals: Callable[[Request], tuple[Reason, ...]]


_KERNELS: Final[dict[type[Spec], _Kernel]] = {
    CacheReadSpec: _Kernel("opsocket_ascend.triton_provider.cache", "TritonCacheRead", refusals.cache_read),
    CacheWriteSpec: _Kernel("opsocket_ascend.triton_provider.cache", "TritonCacheWrite", refusals.cache_write),
    MergeStatesSpec: _Kernel("opsocket_ascend.triton_provider.merge", "TritonMergeStates", refusals.merge_states),
    QuantizeActivationSpec: _Kernel(
        "opsocket_ascend.triton_provider.activation", "TritonQuantizeActivation", lambda request: ()
    ),
    MoERouteSpec: _Kernel("opsocket_triton.model.moe_route", "TritonMoERoute", refusals.moe_route),
    MoECombineSpec: _Kernel("opsocket_ascend.triton_provider.combine", "TritonMoECombine", lambda request: ()),
}


class TritonProvider(Provider):
    """Compiled on the machine by triton-ascend, which brings its own `triton`; on an emulated NPU, interpreted by that
    of the GPU backends."""

    name = "triton"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        kernel = _KERNELS.get(type(request.spec))
        if kernel is None:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        reasons = dtype_refusals(device, request)
        if device.arch not in VECTOR_CORES:
            reasons += (Reason("chip", "device.arch", device.arch, "a target of triton-ascend"),)
        if request.cache is not None:
            reasons += layouts.refusals(request.cache, request.layout)
        reasons = reasons or kernel.refusals(request) or _absent(device)
        if reasons:
            return reasons
        if device.numerics == "emulated":
            _interpret(device)
        module = importlib.import_module(kernel.module)
        plan: type[Plan] = getattr(module, kernel.plan)
        return Pick(plan)

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return () if layouts.refusals(cache) else (layouts.pages(cache),)


def _absent(device: DeviceInfo) -> tuple[Reason, ...]:
    """Packages that are not here: a chip's Triton is another than the one that interprets."""
    if importlib.util.find_spec("torch") is None:
        return (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[ascend]'"),)
    if device.numerics != "emulated" and not has_compilers():
        want = "the package triton-ascend installed: pip install --no-deps triton-ascend==3.2.0 pybind11"
        return (Reason("package", "triton-ascend", None, want),)
    if device.numerics == "emulated" and (has_compilers() or importlib.util.find_spec("triton") is None):
        want = "Triton itself installed, to interpret: pip install 'opsocket[triton]'"
        return (Reason("package", "triton", None, want),)
    return ()


def _interpret(device: DeviceInfo) -> None:
    """Before a kernel's module is imported, which makes it for one mode or the other."""
    from opsocket_ascend.emulator.load import bytes_behind, submit
    from opsocket_triton import mode

    mode.interpret(device)
    from opsocket_triton import interpreter

    interpreter.run_on("npu", interpreter.Place(bytes_behind, submit))
