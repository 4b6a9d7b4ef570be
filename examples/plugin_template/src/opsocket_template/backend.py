"""The chip: what `--backend template` finds, and how a device of it is opened."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

from opsocket.operators import Backend, BackendInfo, DeviceInfo, Provider, Session, SessionOptions
from opsocket_template.provider import TemplateProvider


class TemplateBackend(Backend):
    """One device, the host. Making this object, and asking it anything but `open`, touches no device.

    Where your chip may be missing, `devices` returns [] (without importing the driver's Python package to find out),
    and `absence` says why and what to install.
    """

    info = BackendInfo(name="template", version="0.1.0", api=">=1.0,<2", vendor="yours")

    def devices(self) -> Sequence[DeviceInfo]:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return [DeviceInfo("template", 0, "NumPy on the host", platform.machine(), memory)]

    def providers(self) -> Sequence[Provider]:
        return [TemplateProvider()]

    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        from opsocket_template.session import TemplateSession

        return TemplateSession(self, device, options)
