"""The CPU as a backend: one device, this machine's processor."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Sequence

import opsocket
from opsocket.operators import Absence, Backend, BackendInfo, DeviceInfo, Provider, Session, SessionOptions
from opsocket.operators.composed import ComposedProvider
from opsocket_cpu import host
from opsocket_cpu.graph import CpuGraph
from opsocket_cpu.native.library import LEVEL_VARIABLE, absence, library
from opsocket_cpu.native.provider import NativeProvider
from opsocket_cpu.onnxruntime_provider.provider import OnnxRuntimeProvider
from opsocket_cpu.openvino_provider.provider import OpenVinoProvider
from opsocket_cpu.torch_provider.provider import TorchProvider


class CpuBackend(Backend):
    """Always present where torch is installed; torch itself is imported by `open` and by kernels, not before."""

    info = BackendInfo("cpu", opsocket.__version__, ">=1.0,<2", "the CPU's own")
    graph_type = CpuGraph

    def __init__(self) -> None:
        # Before torch loads its OpenMP runtime, which reads this once: threads that spin for long while they wait for
        # each other take the core that the other one needs, and beside other work decode falls from 3 tokens/s to 0.2.
        decided = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
        if "torch" not in sys.modules and not decided:
            os.environ["GOMP_SPINCOUNT"] = "1000"

    def devices(self) -> Sequence[DeviceInfo]:
        if not _torch_installed():
            return []
        return [DeviceInfo("cpu", 0, host.cpu_name(), platform.machine(), host.total_bytes(), host.cpu_features())]

    def providers(self) -> Sequence[Provider]:
        return [NativeProvider(), TorchProvider(), OnnxRuntimeProvider(), OpenVinoProvider(), ComposedProvider()]

    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        from opsocket_cpu.session import CpuSession

        return CpuSession(self, device, options)

    def notes(self) -> Sequence[str]:
        found = library()
        if found is None:
            return [f"no native kernels: {absence()}; the other providers serve"]
        levels = ", ".join(f"{level.name}{'' if level.runs_here else ' (not here)'}" for level in found.levels())
        return [f"native kernels at level {found.level}, of {levels}; {LEVEL_VARIABLE} forces one"]

    def absence(self) -> Absence:
        return Absence("the Python package torch is not installed", "pip install 'opsocket[cpu]'")


def _torch_installed() -> bool:
    return importlib.util.find_spec("torch") is not None
