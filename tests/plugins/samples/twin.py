"""Brings a second backend under the name of the good one."""

from opsocket.operators import BackendInfo
from opsocket.plugins import hookimpl

from .base import NumpyBackend


class Twin(NumpyBackend):
    info = BackendInfo("good", "7.0", ">=1.0,<2", "Another Inc")


@hookimpl
def opsocket_backends():
    return [Twin()]
