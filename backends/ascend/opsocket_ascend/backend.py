"""Huawei Ascend NPUs as a backend."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

import opsocket
from opsocket.operators import Absence, Backend, BackendInfo, DeviceInfo, Ladder, Provider, Session, SessionOptions
from opsocket_ascend import installation, mode, npu_smi
from opsocket_ascend.composed import NpuComposedProvider
from opsocket_ascend.emulator import build
from opsocket_ascend.graph import NpuGraph
from opsocket_ascend.socs import find_soc, soc_of
from opsocket_ascend.torch_npu_provider.provider import TorchNpuProvider
from opsocket_ascend.torch_provider.provider import TorchProvider
from opsocket_ascend.triton_provider.provider import TritonProvider
from opsocket_ascend.verification.ladder import AscendLadder


class AscendBackend(Backend):
    """Devices as the driver's files and tool have them; torch and torch_npu are imported by `open`."""

    info = BackendInfo("ascend", opsocket.__version__, ">=1.0,<2", "Huawei")
    graph_type = NpuGraph

    def __init__(self) -> None:
        # torch imports torch_npu by itself, and falls with it where there is no CANN or another torch. `open` imports
        # it, so that nothing is lost.
        if "torch" not in sys.modules and importlib.util.find_spec("torch_npu") is not None and _unusable() is not None:
            os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

    def devices(self) -> Sequence[DeviceInfo]:
        if installation.missing_packages() is not None:
            return []
        if mode.is_asked_for():
            return mode.emulated_devices() if build.is_built() else []
        return [] if installation.missing_cann() is not None else _present()

    def providers(self) -> Sequence[Provider]:
        return [TorchNpuProvider(), TritonProvider(), TorchProvider(), NpuComposedProvider()]

    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        from opsocket_ascend.session import NpuSession

        return NpuSession(self, device, options)

    def notes(self) -> Sequence[str]:
        if installation.missing_packages() is not None:
            return ()
        if mode.is_asked_for():
            if not build.is_built():
                return ()
            over = f"stand-in CANN libraries in {build.FOLDER}: nothing here has run on an NPU"
        else:
            over = installation.cann_here() or "no CANN"
        return (f"torch_npu {installation.torch_npu_version()} over {over}",)

    def ladder(self) -> Ladder | None:
        return AscendLadder()

    def absence(self) -> Absence:
        # Without a chip nothing is worth being installed, but for an emulated one.
        if not npu_smi.driver_nodes() and not mode.is_asked_for():
            hint = f"{mode.VARIABLE}=Ascend910B3 emulates one, to see what is called: make ascend-emulator"
            return Absence("no Ascend driver here: /dev/davinci0 absent", hint)
        packages = installation.missing_packages()
        if packages is not None:
            return packages
        if mode.is_asked_for():
            return Absence("the stand-in CANN libraries of the emulated NPU are not built", build.HOW)
        cann = installation.missing_cann()
        if cann is not None:
            return cann
        try:
            found = npu_smi.npus()
        except npu_smi.NpuSmiError as error:
            return Absence(f"the Ascend driver does not answer: {error}", "see whether npu-smi info works")
        if not found:
            return Absence("no NPU is visible to this process", "see ASCEND_RT_VISIBLE_DEVICES and npu-smi info -m")
        return Absence(f"no NPU of a chip that is known: {', '.join(npu.name for npu in found)}", "")


def _unusable() -> Absence | None:
    return installation.missing_packages() or installation.missing_cann()


def _present() -> list[DeviceInfo]:
    if not npu_smi.driver_nodes():
        return []
    try:
        found = npu_smi.npus()
    except npu_smi.NpuSmiError:
        return []
    devices = []
    for index, npu in enumerate(found):
        name = npu.name.replace(" ", "")
        soc = soc_of(name if name.startswith("Ascend") else f"Ascend{name}")
        if soc is not None:
            memory = npu.memory_bytes or find_soc(soc.name).memory_bytes
            devices.append(DeviceInfo("ascend", index, soc.name, soc.name, memory))
    return devices
