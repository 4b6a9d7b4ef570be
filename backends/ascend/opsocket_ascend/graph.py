"""Capture on an NPU: the recorded runs once more. The vendor's own graphs are not used yet."""

from __future__ import annotations

from typing import Any

from opsocket.operators import CommandList


class NpuGraph(CommandList):
    """Takes every kernel, with any batch: each replay enqueues the calls anew, with the batches of now."""

    def _copy(self, target: Any, source: Any) -> None:
        target.copy_(source)
