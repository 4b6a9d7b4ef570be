"""The chips that the vendor's compilers of Triton kernels know, and how many vector cores each has.

As ascendnpu-ir 1.2.0 says of its targets. Ascend310P is none of them.
"""

from __future__ import annotations

from typing import Final

VECTOR_CORES: Final = {
    **dict.fromkeys(("Ascend910B1", "Ascend910B2", "Ascend910B2C"), 48),
    **dict.fromkeys(("Ascend910B3", "Ascend910B4", "Ascend910B4-1"), 40),
    **dict.fromkeys(("Ascend910_9391", "Ascend910_9392", "Ascend910_9381", "Ascend910_9382"), 48),
    **dict.fromkeys(("Ascend910_9372", "Ascend910_9362"), 40),
}
"""By `DeviceInfo.arch`."""
