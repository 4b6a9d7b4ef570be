"""The door: the one module that opsocket's plugin loader imports."""

from __future__ import annotations

from opsocket.operators import Backend
from opsocket.plugins import hookimpl
from opsocket_ascend.backend import AscendBackend


@hookimpl
def opsocket_backends() -> list[Backend]:
    return [AscendBackend()]
