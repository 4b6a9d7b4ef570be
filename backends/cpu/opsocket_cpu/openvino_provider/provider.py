"""Which of OpenVINO's operators serves what. Imports neither it nor a framework to say no."""

from __future__ import annotations

import importlib.util

from opsocket.operators import DeviceInfo, Pick, Provider, Reason, Request
from opsocket_cpu.grouped_codes import GROUPS, refusals

ACTIVATIONS = {"none": GROUPS}
"""Its own quantization of activations follows no format that we pin, so it computes with floats here."""


class OpenVinoProvider(Provider):
    """Products with grouped weights, by its compressed MatMul."""

    name = "openvino"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        if reasons := refusals(request, ACTIVATIONS):
            return reasons
        for package in ("torch", "openvino"):
            if importlib.util.find_spec(package) is None:
                want = f"the package {package} installed: pip install 'opsocket[cpu,openvino]'"
                return (Reason("package", package, None, want),)
        from opsocket_cpu.openvino_provider.matmul import OpenVinoMatmul

        return Pick(OpenVinoMatmul)
