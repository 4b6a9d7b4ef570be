"""The NVIDIA GPUs of this machine, by the driver's management library: no CUDA context, no framework.

NVML Reference Manual, "Device Queries". Devices come in the order in which CUDA numbers them, so far as
CUDA_VISIBLE_DEVICES names them by number or UUID.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96


class NvmlError(OSError):
    """The driver's library is absent, or refuses."""


@dataclass(frozen=True)
class Gpu:
    """capability: major and minor of the compute capability."""

    name: str
    uuid: str
    capability: tuple[int, int]
    memory_bytes: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpus() -> list[Gpu]:
    """The GPUs that this process may see; `NvmlError` where the driver can't be asked."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NvmlError(str(error)) from None
    _ask(library, "nvmlInit_v2")
    try:
        count = ctypes.c_uint()
        _ask(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        found = [_gpu(library, index) for index in range(count.value)]
    finally:
        library.nvmlShutdown()
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(found: list[Gpu], variable: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES lets a process see, in its order; as CUDA does, up to the first that is none."""
    if variable is None:
        return found
    seen = []
    for name in (part.strip() for part in variable.split(",")):
        if name.isdigit() and int(name) < len(found):
            seen.append(found[int(name)])
        elif matching := [gpu for gpu in found if name and gpu.uuid.startswith(name)]:
            seen.append(matching[0])
        else:
            break
    return seen


def _gpu(library: Any, index: int) -> Gpu:
    handle, memory = ctypes.c_void_p(), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name, uuid = ctypes.create_string_buffer(_TEXT_BYTES), ctypes.create_string_buffer(_TEXT_BYTES)
    _ask(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    _ask(library, "nvmlDeviceGetName", handle, name, ctypes.c_uint(_TEXT_BYTES))
    _ask(library, "nvmlDeviceGetUUID", handle, uuid, ctypes.c_uint(_TEXT_BYTES))
    _ask(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    _ask(library, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
    return Gpu(name.value.decode(), uuid.value.decode(), (major.value, minor.value), int(memory.total))


def _ask(library: Any, function: str, *args: Any) -> None:
    status = getattr(library, function)(*args)
    if status:
        library.nvmlErrorString.restype = ctypes.c_char_p
        raise NvmlError(f"{function}: {library.nvmlErrorString(status).decode()}")
