"""Capture on the CPU: a list of commands that the native library replays in one call.

Runs of other providers' kernels may stand between native ones; the list is then replayed in pieces.
"""

from __future__ import annotations

from typing import Any

from opsocket.operators import Array, Call, CommandList


class CpuGraph(CommandList):
    def _copy(self, target: Array, source: Array) -> None:
        target.copy_(source)

    def _end(self) -> None:
        """Join neighbouring native runs into lists. What they need is then all in the lists: no Python between."""
        from opsocket_cpu.native.library import CommandArray
        from opsocket_cpu.native.plan import NativePlan, commands

        self._pieces: list[Any] = []
        run: list[Call] = []
        for call in [*self.calls, None]:
            if call is not None and isinstance(call.plan, NativePlan):
                run.append(call)
                continue
            if run:
                self._pieces.append(CommandArray(commands(run)))
                run = []
            if call is not None:
                self._pieces.append(call)

    def _replay(self) -> None:
        if self.session.observer is not None:
            super()._replay()
            return
        for piece in self._pieces:
            if isinstance(piece, Call):
                self._again(piece)
            else:
                self.session.library.run(piece, self.session.threads)
