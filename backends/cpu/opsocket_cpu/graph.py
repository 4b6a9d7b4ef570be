"""Capture on the CPU: a list of kernel calls. Replaying them natively, in one call, is not built yet."""

from __future__ import annotations

from opsocket.operators import Array, CommandList


class CpuGraph(CommandList):
    def _copy(self, target: Array, source: Array) -> None:
        target.copy_(source)
