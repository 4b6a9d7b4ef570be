"""Whether this process runs kernels on a chip, or under Triton's interpreter in a chip's place.

`OPSOCKET_INTERPRET=sm_90,gfx942` lists an interpreted device of each of these architectures under its backend: Python
and NumPy carry out the kernels' own source. Such a device is never `auto`'s choice, its figures say nothing about
speed, and a report names it as interpreted. A process is of one mode from its first kernel on.

Its memory is that of a simulated device, which the host can't touch. It is the host's own where no such device can be
had, or `OPSOCKET_INTERPRET_MEMORY=host` asks for that; what the host does to the device's memory is then not seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Final, Literal

from opsocket.operators import ContractError, DeviceInfo, PluginError
from opsocket_simulated import build
from opsocket_triton.arches import arches_of, find_arch

VARIABLE: Final = "OPSOCKET_INTERPRET"
MEMORY_VARIABLE: Final = "OPSOCKET_INTERPRET_MEMORY"


def interpreted_devices(name: str, backend: Literal["cuda", "hip"], first: int = 0) -> list[DeviceInfo]:
    """The devices of backend `name` that the variable asks for, in its order, counted from `first`; `ContractError` for
    an unknown one."""
    asked = [find_arch(arch.strip()) for arch in os.environ.get(VARIABLE, "").split(",") if arch.strip()]
    mine = [arch for arch in asked if arch in arches_of(backend)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        DeviceInfo(name, index, arch.name, arch.name, memory, numerics="interpreted")
        for index, arch in enumerate(mine, first)
    ]


def interpret(device: DeviceInfo) -> None:
    """Make this process one that interprets; `PluginError` where kernels have been made for a chip already."""
    if is_interpreting():
        return
    if _kernels_made():
        cause = "kernels were made for a chip in this process already, and an interpreted device needs one of its own"
        raise PluginError("opened", str(device), cause)
    import triton

    # Read by triton.jit when a kernel's module is imported.
    triton.knobs.runtime.interpret = True
    from opsocket_triton import interpreter

    interpreter.install()


def unprotected() -> str | None:
    """Why the memory of interpreted devices is the host's own, as far as that is known without compiling; None where
    it is a simulated device's."""
    asked = os.environ.get(MEMORY_VARIABLE, "simulated")
    if asked not in ("simulated", "host"):
        raise ContractError(MEMORY_VARIABLE, "simulated or host", repr(asked))
    return f"{MEMORY_VARIABLE}=host asks for it" if asked == "host" else build.absence()


def notes(backend: Literal["cuda", "hip"], devices: Sequence[DeviceInfo]) -> list[str]:
    """What `opsocket doctor` says: the compiler, the architectures, and what interpreted devices are."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return ["Triton is not installed"]
    known = ", ".join(arch.name for arch in arches_of(backend))
    found = [f"Triton {version} compiles for {known}; `opsocket verify` does so without the chip"]
    if not any(device.numerics == "interpreted" for device in devices):
        return found
    if why := unprotected():
        return [*found, f"interpreted, in plain host memory, where hidden transfers are not seen: {why}"]
    return [*found, "interpreted, in the memory of a simulated device, which the host can't touch unseen"]


def is_interpreting() -> bool:
    """Whether kernels made in this process from now on are interpreted, by the mended interpreter."""
    return "opsocket_triton.interpreter" in sys.modules


def check_compiles(device: DeviceInfo) -> None:
    """`PluginError` where this process interprets, and so can't run on a chip."""
    if is_interpreting():
        cause = "kernels are interpreted in this process, and a chip needs a process of its own"
        raise PluginError("opened", str(device), cause)


def _kernels_made() -> bool:
    return any(name.startswith("opsocket_triton.") and hasattr(module, "tl") for name, module in sys.modules.items())
