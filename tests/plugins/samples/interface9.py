"""Written for a later interface."""

from opsocket.operators import BackendInfo
from opsocket.plugins import hookimpl

from .base import NumpyBackend


class Future(NumpyBackend):
    info = BackendInfo("interface9", "1.0", ">=9.0,<10", "Samples Inc")


@hookimpl
def opsocket_backends():
    return [Future()]
