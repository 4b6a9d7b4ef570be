"""Brings several backends: an emulated device with a lot of memory, and two real ones of different size."""

from opsocket.operators import BackendInfo, DeviceInfo
from opsocket.plugins import hookimpl

from .base import MEMORY, NumpyBackend


class Emulated(NumpyBackend):
    info = BackendInfo("emulated", "1.0", ">=1.0,<2", "Samples Inc")

    def devices(self):
        return [DeviceInfo("emulated", 0, "not a chip", "any", 1000 * MEMORY, numerics="emulated")]


class Large(NumpyBackend):
    info = BackendInfo("large", "1.0", ">=1.0,<2", "Samples Inc")

    def devices(self):
        return [DeviceInfo("large", i, "large chip", "any", 4 * MEMORY) for i in range(2)]


class Host(NumpyBackend):
    info = BackendInfo("cpu", "1.0", ">=1.0,<2", "Samples Inc")

    def devices(self):
        return [DeviceInfo("cpu", 0, "host", "any", 100 * MEMORY)]


class Faulty(NumpyBackend):
    info = BackendInfo("faulty", "1.0", ">=1.0,<2", "Samples Inc")

    def open(self, device, options):
        raise RuntimeError("the firmware does not answer")


@hookimpl
def opsocket_backends():
    return [Emulated(), Host(), Large(), Faulty()]
