"""Nothing is wrong with this one."""

from opsocket.operators import BackendInfo
from opsocket.plugins import hookimpl

from .base import NumpyBackend


class Good(NumpyBackend):
    info = BackendInfo("good", "1.2", ">=1.0,<2", "Samples Inc")


@hookimpl
def opsocket_backends():
    return [Good()]
