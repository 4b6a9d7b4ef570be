"""What the native kernels do not do, as reasons, by operator. Whatever is not refused here runs."""

from __future__ import annotations

from opsocket.operators import Reason, Request


def nothing(request: Request) -> tuple[Reason, ...]:
    """For kernels that take every request of their operator."""
    return ()
