"""In order, but its chip is not in this machine."""

from opsocket.operators import Absence, BackendInfo
from opsocket.plugins import hookimpl

from .base import NumpyBackend


class Deviceless(NumpyBackend):
    info = BackendInfo("deviceless", "1.0", ">=1.0,<2", "Samples Inc")

    def devices(self):
        return []

    def absence(self):
        return Absence("/dev/sample0 is absent", "plug one in")


@hookimpl
def opsocket_backends():
    return [Deviceless()]
