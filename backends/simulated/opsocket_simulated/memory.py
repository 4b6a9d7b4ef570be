"""Devices by name, launches on their memory, and what they have counted. Imports torch."""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch

from opsocket_simulated import build

TYPE: Final = "simulated"
"""torch's name of the device's kind: tensors are on `simulated:0` and so on."""

_DEVICES: Final = 16


class UseAfterFree(MemoryError):
    """A launch was given memory that no tensor has."""


class MixedDevices(TypeError):
    """A launch was given tensors of several devices."""


@dataclass(frozen=True)
class Counts:
    """What a device has seen so far. live, peak: bytes of its tensors, as asked for. allocations: how often it took
    memory. reads, writes: copies to and from another device, the host's reads of single numbers among them. waits: of
    the host for the device, for a shape that depends on content too. kernels: torch's operations. launches: others'."""

    live: int
    peak: int
    allocations: int
    reads: int
    writes: int
    waits: int
    kernels: int
    launches: int


_Row = ctypes.c_int64 * len(Counts.__dataclass_fields__)


@cache
def _loaded() -> ctypes.CDLL | str:
    """The library, registered with torch, once; or why it can't be."""
    taken = torch._C._get_privateuse1_backend_name()
    if taken != "privateuseone":
        return f"torch has room for one device of a third party, and {taken!r} has it in this process"
    path = build.built()
    if isinstance(path, str):
        return path
    torch.utils.rename_privateuse1_backend(TYPE)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path} can't be loaded: {error}"
    library.opsocket_simulated_register()
    library.opsocket_simulated_open.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.opsocket_simulated_close.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.opsocket_simulated_limit.argtypes = [ctypes.c_int, ctypes.c_int64]
    torch._register_device_module(TYPE, _module(library))
    return library


def absence() -> str | None:
    """Why this process has no simulated device; None where it has. Compiles and loads it."""
    loaded = _loaded()
    return loaded if isinstance(loaded, str) else None


def _library() -> ctypes.CDLL:
    loaded = _loaded()
    if isinstance(loaded, str):
        raise RuntimeError(f"no simulated device: {loaded}")
    return loaded


_named: list[str] = []


def device(name: str, memory_bytes: int) -> torch.device:
    """The simulated device that stands for `name`, which is the same one every time. memory_bytes: what it has."""
    library = _library()
    if name not in _named:
        if len(_named) == _DEVICES:
            raise RuntimeError(f"no simulated device is left for {name!r}: {_named} have them")
        _named.append(name)
    library.opsocket_simulated_limit(_named.index(name), memory_bytes)
    return torch.device(TYPE, _named.index(name))


def counts(where: torch.device | int) -> Counts:
    """What a device has counted since this process began."""
    row = _Row()
    _library().opsocket_simulated_counts(where if isinstance(where, int) else where.index, row)
    return Counts(*row)


@contextmanager
def launched(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """A launch: the memory of exactly these tensors is accessible inside.

    Tensors of the host alone are nobody's launch, and are left alone. `MixedDevices`, `UseAfterFree`.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise MixedDevices(f"a launch with tensors on {', '.join(sorted(map(str, devices)))}: one device was wanted")
    where = next(iter(devices), None)
    if where is None or where.type != TYPE:
        yield
        return
    starts = sorted({tensor.untyped_storage().data_ptr() for tensor in tensors} - {0})
    with opened(starts, where):
        yield


@contextmanager
def opened(starts: Sequence[int], where: torch.device) -> Iterator[None]:
    """The memory of the storages that begin at these addresses is accessible inside."""
    library = _library()
    addresses = (ctypes.c_void_p * len(starts))(*starts)
    if missing := library.opsocket_simulated_open(addresses, len(starts), where.index):
        raise UseAfterFree(f"no tensor on {where} has the memory at {starts[missing - 1]:#x}: it was freed")
    try:
        yield
    finally:
        library.opsocket_simulated_close(addresses, len(starts))


def _module(library: ctypes.CDLL) -> Any:
    """What is `torch.simulated`: the functions that torch asks a device's module for, and the counts."""

    def index(where: Any) -> int:
        if where is None:
            return int(library.opsocket_simulated_current())
        if isinstance(where, int):
            return where
        return torch.device(where).index or 0

    def synchronize(device: Any = None) -> None:
        library.opsocket_simulated_waited(index(device))

    def memory_stats(device: Any = None) -> dict[str, int]:
        """As `torch.cuda.memory_stats`, of its keys those that mean something here."""
        counted = counts(index(device))
        return {
            "allocation.all.allocated": counted.allocations,
            "allocated_bytes.all.current": counted.live,
            "allocated_bytes.all.peak": counted.peak,
        }

    def host_accesses(device: Any = None) -> dict[str, int]:
        """How often this thread has read from the device, written to it, and waited for it."""
        row = (ctypes.c_int64 * 3)()
        library.opsocket_simulated_accesses(index(device), row)
        return dict(zip(("reads", "writes", "waits"), row, strict=True))

    module = types.ModuleType(f"torch.{TYPE}", __doc__)
    functions = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: _DEVICES,
        "current_device": lambda: index(None),
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "synchronize": synchronize,
        "memory_allocated": lambda device=None: counts(index(device)).live,
        "memory_stats": memory_stats,
        "host_accesses": host_accesses,
    }
    for name, function in functions.items():
        setattr(module, name, function)
    sys.modules[module.__name__] = module
    return module
