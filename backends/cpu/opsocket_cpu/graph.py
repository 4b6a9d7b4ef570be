"""Capture on the CPU: a list of commands that the native library replays in one call.

Runs of other providers' kernels may stand between native ones; the list is then replayed in pieces.
"""

from __future__ import annotations

from ctypes import c_int64
from typing import Any

from opsocket.operators import Array, Call, CommandList


class CpuGraph(CommandList):
    any_rows = True

    def _copy(self, target: Array, source: Array) -> None:
        target.copy_(source)

    def _end(self) -> None:
        """Join neighbouring native runs into lists. What they need is then all in the lists: no Python between."""
        from opsocket_cpu.native.library import CommandArray
        from opsocket_cpu.native.plan import NativePlan, commands

        self._pieces: list[Any] = []
        self._rows: list[tuple[int, list[c_int64]]] = []
        run: list[Call] = []
        for call in [*self.calls, None]:
            if call is not None and isinstance(call.plan, NativePlan):
                run.append(call)
                continue
            if run:
                piece = CommandArray(commands(run))
                self._pieces.append(piece)
                counts = [piece.field(i, of.plan._counted.rows) for i, of in enumerate(run) if of.plan._counted]
                self._rows += [(most, [n for n in counts if n.value == most]) for most in self.rows]
                run = []
            if call is not None:
                self._pieces.append(call)

    def _replay(self) -> None:
        if self.session.observer is not None:
            super()._replay()
            return
        rows = self.session.rows or {}
        for most, counts in self._rows:
            for count in counts:
                count.value = rows.get(most, most)
        for piece in self._pieces:
            if isinstance(piece, Call):
                self._again(piece)
            else:
                self.session.library.run(piece, self.session.threads)
