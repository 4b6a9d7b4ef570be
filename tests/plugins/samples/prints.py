"""Greets whoever imports it, on stdout."""

from opsocket.operators import BackendInfo
from opsocket.plugins import hookimpl

from .base import NumpyBackend

print("hello from a plugin")


class Prints(NumpyBackend):
    info = BackendInfo("prints", "1.0", ">=1.0,<2", "Samples Inc")


@hookimpl
def opsocket_backends():
    return [Prints()]
