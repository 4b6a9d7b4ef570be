"""torch_npu, imported for a device: over CANN, or over the emulator's stand-ins."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from opsocket.operators import DeviceInfo, PluginError


def torch_npu_for(device: DeviceInfo) -> Any:
    """The module; `PluginError` where it can't be had, or this process has the other kind of device already."""
    emulated = "opsocket_ascend.emulator.load" in sys.modules
    if device.numerics == "emulated":
        from opsocket_ascend.emulator import build
        from opsocket_ascend.emulator.load import load

        try:
            return load()
        except RuntimeError as error:
            raise PluginError("opened", str(device), str(error), hint=build.HOW) from None
    if emulated:
        raise PluginError("opened", str(device), "this process has an emulated NPU, and a chip needs one of its own")
    try:
        return importlib.import_module("torch_npu")
    except (ImportError, RuntimeError) as error:
        cause = f"torch_npu does not load: {error}"
        raise PluginError("opened", str(device), cause, hint="source CANN's set_env.sh, and see its log") from None
