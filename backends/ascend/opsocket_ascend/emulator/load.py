"""torch_npu in this process, over the stand-in libraries: loaded by path, so that no other process is touched."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from opsocket_ascend.emulator import build
from opsocket_ascend.emulator.calls import Door
from opsocket_ascend.emulator.handles import EmulationError

_loaded: list[Any] = []
_SETTINGS: Final = {
    # Nothing but an explicit import may load torch_npu: `import torch` would, and fail without CANN.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    # Calls are answered in the thread that makes them, one after the other, so that errors come from where they arise.
    "TASK_QUEUE_ENABLE": "0",
}


def load() -> Any:
    """The module torch_npu. `RuntimeError` where the libraries are not built, or the real ones are loaded already."""
    if _loaded:
        return _loaded[0]
    if "torch_npu" in sys.modules:
        raise RuntimeError("torch_npu is loaded in this process already; an emulated NPU needs a process of its own")
    if not build.is_built():
        raise RuntimeError("the stand-in CANN libraries are not built: python -m opsocket_ascend.emulator.build")
    os.environ.update(_SETTINGS)
    # By their sonames they are then what torch_npu's libraries, and its dlopen, get.
    names = (build.RUNTIME, *build.EMPTY, build.OPERATORS)
    libraries = {name: ctypes.CDLL(str(build.FOLDER / name), mode=ctypes.RTLD_GLOBAL) for name in names}
    runtime, operators = libraries[build.RUNTIME], libraries[build.OPERATORS]
    memory = runtime.opsocket_bytes_behind
    memory.argtypes, memory.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_void_p
    runtime.opsocket_set_message.argtypes = (ctypes.c_char_p,)
    keep = runtime.opsocket_keep_call
    keep.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64))
    door = Door(memory, runtime.opsocket_set_message, keep)
    runtime.opsocket_set_graph_calls.argtypes = (type(door.again), type(door.forget))
    runtime.opsocket_set_graph_calls(door.again, door.forget)
    importlib.import_module("opsocket_ascend.emulator.answers")
    operators.opsocket_set_callback.argtypes = (type(door.callback),)
    operators.opsocket_set_callback(door.callback)
    runtime.opsocket_set_aclop_callback.argtypes = (type(door.aclop_callback),)
    runtime.opsocket_set_aclop_callback(door.aclop_callback)
    _loaded.extend((importlib.import_module("torch_npu"), door, libraries, memory))
    return _loaded[0]


def bytes_behind(address: int, count: int) -> int:
    """Where the emulator finds device memory [address, address + count), which the host can't touch there."""
    found: int | None = _loaded[3](address, count)
    if not found:
        raise EmulationError(f"{count} bytes at {address:#x} are in no allocation of the device")
    return found


def submit(kernel: str, work: Callable[[], None]) -> None:
    """A launch on torch_npu's current stream: carried out now, or in each replay of the graph that is captured."""
    _loaded[1].submit(_loaded[0].npu.current_stream().npu_stream, kernel, work)
