"""AMD GPUs as a backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import opsocket
from opsocket.operators import Absence, Backend, BackendInfo, DeviceInfo, Ladder, Provider, Session, SessionOptions
from opsocket.operators.composed import ComposedProvider
from opsocket_rocm import kfd
from opsocket_torch_gpu.provider import HipblasProvider
from opsocket_triton.arches import ARCHES
from opsocket_triton.graph import GpuGraph
from opsocket_triton.ladder import TritonLadder
from opsocket_triton.mode import interpreted_devices, notes
from opsocket_triton.provider import TritonProvider

_DRIVER = Path("/dev/kfd")
_NEED = "needs the ROCm build of torch, and triton: pip install 'opsocket[rocm]'"


class RocmBackend(Backend):
    """Devices of the architectures that the kernels are compiled for, found by the kernel driver's own list."""

    info = BackendInfo("rocm", opsocket.__version__, ">=1.0,<2", "AMD")
    graph_type = GpuGraph

    def devices(self) -> Sequence[DeviceInfo]:
        if not _installed():
            return []
        present = self._present()
        return [*present, *interpreted_devices("rocm", "hip", len(present))]

    def providers(self) -> Sequence[Provider]:
        return [HipblasProvider(), TritonProvider(), ComposedProvider()]

    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        from opsocket_triton.session import GpuSession

        return GpuSession(self, device, options)

    def absence(self) -> Absence:
        if not _installed():
            return Absence("the Python packages torch and triton are not both installed", _NEED)
        if not _DRIVER.exists():
            hint = "OPSOCKET_INTERPRET=gfx942 interprets the kernels, slowly, to see what they compute"
            return Absence(f"no AMD GPU driver here: {_DRIVER} absent", hint)
        found = kfd.gpus()
        if not found:
            return Absence("no GPU is visible to this process", "see HIP_VISIBLE_DEVICES and rocminfo")
        names = ", ".join(f"{gpu.name} ({gpu.arch})" for gpu in found)
        want = ", ".join(arch.name for arch in ARCHES.values() if arch.backend == "hip")
        return Absence(f"no GPU of an architecture in {want}: {names}", "")

    def notes(self) -> Sequence[str]:
        return notes("hip", self.devices())

    def ladder(self) -> Ladder | None:
        return TritonLadder("hip", "AMD") if _installed() else None

    @staticmethod
    def _present() -> list[DeviceInfo]:
        if not _DRIVER.exists():
            return []
        return [
            DeviceInfo("rocm", index, gpu.name, gpu.arch, gpu.memory_bytes)
            for index, gpu in enumerate(kfd.gpus())
            if gpu.arch in ARCHES
        ]


def _installed() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in ("torch", "triton"))
