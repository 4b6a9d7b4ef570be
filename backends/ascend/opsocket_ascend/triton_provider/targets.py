"""The chips that the vendor's compilers of Triton kernels know, and how many vector cores each has.

As ascendnpu-ir 1.2.0 says of its targets. Ascend310P is none of them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

VECTOR_CORES: Final = {
    **dict.fromkeys(("Ascend910B1", "Ascend910B2", "Ascend910B2C"), 48),
    **dict.fromkeys(("Ascend910B3", "Ascend910B4", "Ascend910B4-1"), 40),
    **dict.fromkeys(("Ascend910_9391", "Ascend910_9392", "Ascend910_9381", "Ascend910_9382"), 48),
    **dict.fromkeys(("Ascend910_9372", "Ascend910_9362"), 40),
}
"""By `DeviceInfo.arch`."""


def has_compilers() -> bool:
    """Whether this environment's `triton` is triton-ascend's: the package has its backend in it."""
    found = importlib.util.find_spec("triton")
    return found is not None and any(
        Path(folder, "backends", "ascend").is_dir() for folder in found.submodule_search_locations or ()
    )
