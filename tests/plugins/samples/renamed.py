"""Overrides `devices` under a name that it never had."""

from opsocket.operators import BackendInfo
from opsocket.plugins import hookimpl

from .base import NumpyBackend


class Renamed(NumpyBackend):
    info = BackendInfo("renamed", "1.0", ">=1.0,<2", "Samples Inc")

    def get_devices(self):
        return []


@hookimpl
def opsocket_backends():
    return [Renamed()]
