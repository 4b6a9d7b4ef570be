"""NVIDIA GPUs as a backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import opsocket
from opsocket.operators import Absence, Backend, BackendInfo, DeviceInfo, Ladder, Provider, Session, SessionOptions
from opsocket.operators.composed import ComposedProvider
from opsocket_cuda import nvml
from opsocket_cuda.flashinfer_provider.provider import FlashInferProvider
from opsocket_torch_gpu.provider import CublasProvider
from opsocket_triton.graph import GpuGraph
from opsocket_triton.ladder import TritonLadder
from opsocket_triton.mode import interpreted_devices, notes
from opsocket_triton.provider import TritonProvider

_DRIVER = Path("/proc/driver/nvidia/version")
_NEED = "needs the CUDA build of torch, and triton: pip install 'opsocket[cuda]'"


class CudaBackend(Backend):
    """Devices of compute capability 8.0 and more, found by the driver's own library; torch is imported by `open`."""

    info = BackendInfo("cuda", opsocket.__version__, ">=1.0,<2", "NVIDIA")
    graph_type = GpuGraph

    def devices(self) -> Sequence[DeviceInfo]:
        if not _installed():
            return []
        present = self._present()
        return [*present, *interpreted_devices("cuda", "cuda", len(present))]

    def providers(self) -> Sequence[Provider]:
        return [FlashInferProvider(), CublasProvider(), TritonProvider(), ComposedProvider()]

    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        from opsocket_triton.session import GpuSession

        return GpuSession(self, device, options)

    def absence(self) -> Absence:
        if not _installed():
            return Absence("the Python packages torch and triton are not both installed", _NEED)
        if not _DRIVER.exists():
            hint = "OPSOCKET_INTERPRET=sm_90 interprets the kernels, slowly, to see what they compute"
            return Absence(f"no NVIDIA driver here: {_DRIVER} absent", hint)
        try:
            found = nvml.gpus()
        except nvml.NvmlError as error:
            return Absence(f"the NVIDIA driver does not answer: {error}", "see whether nvidia-smi works")
        if not found:
            return Absence("no GPU is visible to this process", "see CUDA_VISIBLE_DEVICES and nvidia-smi -L")
        names = ", ".join(f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]})" for gpu in found)
        return Absence(f"no GPU of compute capability 8.0 or more: {names}", "")

    def notes(self) -> Sequence[str]:
        return notes("cuda", self.devices())

    def ladder(self) -> Ladder | None:
        return TritonLadder("cuda", "NVIDIA") if _installed() else None

    @staticmethod
    def _present() -> list[DeviceInfo]:
        if not _DRIVER.exists():
            return []
        try:
            found = nvml.gpus()
        except nvml.NvmlError:
            return []
        return [
            DeviceInfo("cuda", index, gpu.name, "sm_{}{}".format(*gpu.capability), gpu.memory_bytes)
            for index, gpu in enumerate(found)
            if gpu.capability >= (8, 0)
        ]


def _installed() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in ("torch", "triton"))
