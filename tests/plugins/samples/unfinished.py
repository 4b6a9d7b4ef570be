"""Leaves out an abstract method."""

from opsocket.operators import Backend, BackendInfo
from opsocket.plugins import hookimpl


class Unfinished(Backend):
    info = BackendInfo("unfinished", "1.0", ">=1.0,<2", "Samples Inc")

    def devices(self):
        return []

    def providers(self):
        return []


@hookimpl
def opsocket_backends():
    return [Unfinished()]
