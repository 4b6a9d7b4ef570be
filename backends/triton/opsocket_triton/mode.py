"""Whether this process runs kernels on a chip, or under Triton's interpreter in a chip's place.

`OPSOCKET_INTERPRET=sm_90,gfx942` lists an interpreted device of each of these architectures under its backend: Python
and NumPy carry out the kernels' own source, one program after the other. Such a device is never `auto`'s choice, its
figures say nothing about speed, and a report names it as interpreted. A process is of one mode from its first kernel
on.
"""

from __future__ import annotations

import os
import sys
from typing import Final, Literal

from opsocket.operators import DeviceInfo, PluginError
from opsocket_triton.arches import arches_of, find_arch

VARIABLE: Final = "OPSOCKET_INTERPRET"


def interpreted_devices(name: str, backend: Literal["cuda", "hip"]) -> list[DeviceInfo]:
    """The devices of backend `name` that the variable asks for, in its order; `ContractError` for an unknown one."""
    asked = [find_arch(arch.strip()) for arch in os.environ.get(VARIABLE, "").split(",") if arch.strip()]
    mine = [arch for arch in asked if arch in arches_of(backend)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        DeviceInfo(name, index, arch.name, arch.name, memory, numerics="interpreted") for index, arch in enumerate(mine)
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
