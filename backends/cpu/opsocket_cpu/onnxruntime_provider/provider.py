"""Which of ONNX Runtime's operators serves what. Imports neither it nor a framework to say no."""

from __future__ import annotations

import importlib.util

from opsocket.operators import DeviceInfo, Pick, Provider, Reason, Request
from opsocket_cpu.grouped_codes import GROUPS, refusals

ACTIVATIONS = {"none": GROUPS}
"""Where MatMulNBits quantizes activations itself (accuracy level 4), some codes differ from those that `i8_g32` pins:
conformance found up to 225 times its bound. So it computes in f32 here."""


class OnnxRuntimeProvider(Provider):
    """Products with grouped weights, by MatMulNBits."""

    name = "onnxruntime"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        if reasons := refusals(request, ACTIVATIONS):
            return reasons
        for package in ("torch", "onnx", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                want = f"the package {package} installed: pip install 'opsocket[cpu,onnxruntime]'"
                return (Reason("package", package, None, want),)
        from opsocket_cpu.onnxruntime_provider.matmul import OnnxRuntimeMatmul

        return Pick(OnnxRuntimeMatmul)
