"""Whether there is room for a large case, before anything is allocated."""

from __future__ import annotations

from typing import Final

from opsocket.operators import Reason, Session
from opsocket_conformance.bench import Denied

BOUNDARY: Final = 1 << 31
"""Elements: the first offset that a signed 32-bit integer can't hold."""

_MOST: Final = 6 << 30
_SPARE: Final = 1.25


def check_room(session: Session, need: int) -> None:
    """`Denied`, by reason of memory, where a case of `need` bytes is beyond the tier's limit or the device's memory."""
    if need > _MOST:
        raise Denied((Reason("memory", "bytes", need, f"at most {_MOST}, the limit of a large case"),))
    memory = session.memory()
    free = memory.total - (memory.used or 0)
    if need * _SPARE > free:
        raise Denied((Reason("memory", "memory.total", free, f"{int(need * _SPARE)} bytes for a large case"),))
