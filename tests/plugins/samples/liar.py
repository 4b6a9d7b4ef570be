"""Claims matrix products, and names the kernel of another operator for them."""

from opsocket.operators import BackendInfo, DeviceInfo, Pick
from opsocket.plugins import hookimpl

from .base import MEMORY, Add, NumpyBackend, NumpyProvider


class Claims(NumpyProvider):
    def pick(self, device, request):
        return Pick(Add) if request.op == "matmul" else super().pick(device, request)


class Liar(NumpyBackend):
    info = BackendInfo("liar", "1.0", ">=1.0,<2", "Samples Inc")

    def devices(self):
        return [DeviceInfo("liar", 0, "a chip", "any", 2 * MEMORY)]

    def providers(self):
        return [Claims()]


@hookimpl
def opsocket_backends():
    return [Liar()]
