"""Takes down the calls of operators that ask something of an emulated NPU, as torch dispatches them."""

from __future__ import annotations

import hashlib
import sys
import threading
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from opsocket_ascend.emulator import calls as emulated
from opsocket_ascend.verification.calls import Call, encode


def is_emulating() -> bool:
    """Whether this process has opened an emulated NPU. Over a chip nothing is taken down: it took the calls itself."""
    return "opsocket_ascend.emulator.load" in sys.modules


class Recorder(TorchDispatchMode):
    """Of the thread that enters it. calls: different ones since they were taken, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._asked: list[str] = []
        self._digest = hashlib.sha256()
        self.calls: dict[str, None] = {}
        emulated.observe(self._hear)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Or torch imports its compiler for the sake of calls that no one compiles."""
        return False

    def take(self) -> tuple[str, ...]:
        """What was called since the last time."""
        found, self.calls = tuple(self.calls), {}
        return found

    def take_trace(self) -> str:
        """A digest of all calls since the last time, in order."""
        found, self._digest = self._digest.hexdigest(), hashlib.sha256()
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before, self._asked = self._asked, []
        try:
            result = func(*args, **kwargs)
            if self._asked:
                self._note(func, args, kwargs, result)
        finally:
            self._asked = before
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given = {name: encode(value) for name, value in kwargs.items()}
        text = Call(
            f"{func._schema.name}.{func._overloadname}", encode(args), given, encode(result), self._asked
        ).dumps()
        self.calls[text] = None
        self._digest.update(f"{text}\n".encode())

    def _hear(self, operator: str, arguments: dict[str, Any]) -> None:
        if threading.get_ident() == self._thread:
            self._asked.append(emulated.written(operator, arguments))
