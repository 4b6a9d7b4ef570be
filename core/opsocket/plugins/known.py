"""Chips that people ask for by name, whether or not a backend for them is there: facts, so that the answer helps.

Nothing here is a backend, and none is pretended.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class KnownChip:
    """driver: what the operating system needs. traces: files that the driver leaves, the telling one first."""

    name: str
    vendor: str
    driver: str
    traces: tuple[str, ...]

    def is_present(self) -> bool:
        """Whether the driver has left one of its files."""
        return any(map(os.path.exists, self.traces))

    def evidence(self) -> str:
        """Whether the driver is here, and by which file."""
        found = next(filter(os.path.exists, self.traces), None)
        return f"no {self.driver} here: {self.traces[0]} absent" if found is None else f"{self.driver} here: {found}"


KNOWN_CHIPS: Final = (
    KnownChip(
        "cuda", "NVIDIA", "NVIDIA driver", ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
    ),
    KnownChip("rocm", "AMD", "AMD GPU driver", ("/dev/kfd", "/sys/module/amdgpu")),
    KnownChip("ascend", "Huawei", "Ascend driver", ("/dev/davinci0", "/dev/davinci_manager")),
    KnownChip("tpu", "Google", "TPU driver", ("/dev/accel0",)),
)


def known_chip(name: str) -> KnownChip | None:
    """The facts about a well-known backend name."""
    return next((chip for chip in KNOWN_CHIPS if chip.name == name), None)
