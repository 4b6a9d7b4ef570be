"""Whether an emulated NPU is asked for: `OPSOCKET_EMULATE=Ascend910B3` lists one, of that chip.

It is never `auto`'s choice, its figures say nothing about speed, and a report names it as emulated. A process whose
NPU is emulated has no other: the libraries of CANN are loaded once.
"""

from __future__ import annotations

import os
from typing import Final

from opsocket.operators import DeviceInfo
from opsocket_ascend.socs import find_soc

VARIABLE: Final = "OPSOCKET_EMULATE"


def is_asked_for() -> bool:
    """Whether the variable names a chip."""
    return bool(os.environ.get(VARIABLE, "").strip())


def emulated_devices() -> list[DeviceInfo]:
    """The device that the variable asks for; `ContractError` for a chip that is not known."""
    if not is_asked_for():
        return []
    soc = find_soc(os.environ[VARIABLE].strip())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return [DeviceInfo("ascend", 0, soc.name, soc.name, memory, numerics="emulated")]
