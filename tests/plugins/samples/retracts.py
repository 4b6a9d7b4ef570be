"""Says yes, and says no when it comes to planning."""

from opsocket.operators import BackendInfo, Pick, Reason, Unsupported
from opsocket.plugins import hookimpl

from .base import Add, NumpyBackend, NumpyProvider


class Refuses(Add):
    def _setup(self):
        raise Unsupported((Reason("width", "spec.width", 512, [64]),))


class Retracting(NumpyProvider):
    def pick(self, device, request):
        return Pick(Refuses) if request.op == "add" else super().pick(device, request)


class Retracts(NumpyBackend):
    info = BackendInfo("retracts", "1.0", ">=1.0,<2", "Samples Inc")

    def providers(self):
        return [Retracting()]


@hookimpl
def opsocket_backends():
    return [Retracts()]
