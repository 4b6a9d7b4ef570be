"""Spills of compiled norms that are accepted, and why: what their disassembly shows."""

from __future__ import annotations

from typing import Final

from opsocket_triton.artifact import Accepted

_ONCE: Final = Accepted("an address is stored and read once, and there is no loop", 8, {"FITS": True})

NORM: Final = {("norm_rows", "sm_80", "spills"): (_ONCE,)}
