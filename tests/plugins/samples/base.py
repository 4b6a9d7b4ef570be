"""A whole small backend in NumPy that serves one operator. Every sample distribution carries a copy of this file."""

from __future__ import annotations

import numpy as np

from opsocket.operators import (
    AddPlan,
    ArrayInfo,
    Backend,
    ContractError,
    DeviceInfo,
    Memory,
    Pick,
    Provider,
    Reason,
    Session,
    Unsupported,
)

MEMORY = 1 << 20


class Add(AddPlan):
    def _run(self, a, b, out):
        return np.add(a, b, out=out)


class NumpyProvider(Provider):
    name = "numpy"

    def pick(self, device, request):
        if request.op == "add":
            return Pick(Add)
        return (Reason("op", "op", request.op, ["add"]),)


class NumpySession(Session):
    array_type = np.ndarray

    def allocate_cache(self, cache, layout=None, k_scale=None, v_scale=None):
        raise Unsupported((Reason("cache", "cache", "any", "none"),), backend=str(self.device))

    def empty(self, shape, dtype):
        return np.empty(shape, {"f32": np.float32, "f16": np.float16, "i64": np.int64}[dtype])

    def upload(self, array, dtype=None):
        return np.array(array)

    def download(self, array):
        return array.copy()

    def write(self, array, values):
        array[: len(values)] = values
        return array

    def view(self, array, shape):
        return array.reshape(shape)

    def split(self, array, sizes):
        return tuple(np.split(array, np.cumsum(sizes)[:-1], axis=-1))

    def describe(self, array):
        if not isinstance(array, np.ndarray):
            raise ContractError("array", "a NumPy array", type(array).__name__)
        names = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", np.dtype(np.int64): "i64"}
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return ArrayInfo(array.shape, names[array.dtype], strides, str(self.device))

    def synchronize(self):
        pass

    def memory(self):
        return Memory(None, MEMORY)


class NumpyBackend(Backend):
    def devices(self):
        return [DeviceInfo(self.info.name, 0, "NumPy", "any", MEMORY)]

    def providers(self):
        return [NumpyProvider()]

    def open(self, device, options):
        return NumpySession(self, device, options)
