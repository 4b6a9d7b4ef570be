"""The distribution's build hook: compiles the CPU backend's native kernels into the wheel.

Without a compiler the wheel is a pure one that works by the other providers; the reason travels with it for
`opsocket doctor`.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        native = Path(self.root) / "backends" / "cpu" / "native"
        spec = importlib.util.spec_from_file_location("opsocket_native_build", native / "build.py")
        assert spec is not None
        assert spec.loader is not None
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        reason = builder.reason_of(builder.OUTPUT)
        try:
            builder.build()
        except builder.BuildError as error:
            self.app.display_warning(f"native kernels of the CPU backend are left out: {error}")
            builder.leave_reason(error)
            build_data["artifacts"].append(f"/{reason.relative_to(self.root)}")
            return
        reason.unlink(missing_ok=True)
        build_data["artifacts"].append(f"/{builder.OUTPUT.relative_to(self.root)}")
        build_data["pure_python"] = False
        # Plain C functions, loaded by ctypes: one wheel serves every Python.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
