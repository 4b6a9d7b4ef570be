"""Its `supports` raises for some requests instead of answering."""

from opsocket.operators import BackendInfo
from opsocket.plugins import hookimpl

from .base import NumpyBackend, NumpyProvider


class Raising(NumpyProvider):
    def pick(self, device, request):
        return {}[request.op]


class Raises(NumpyBackend):
    info = BackendInfo("raises", "1.0", ">=1.0,<2", "Samples Inc")

    def providers(self):
        return [Raising()]


@hookimpl
def opsocket_backends():
    return [Raises()]
