"""What the native kernels do not do, as reasons, by operator. Whatever is not refused here runs."""

from __future__ import annotations

from opsocket.operators import Reason, Request, RopeSpec
from opsocket.operators.rope_frequencies import undefined

MAX_ROTARY_DIM = 1 << 16
"""One position's cosines and sines have to lie in a thread's own memory."""


def nothing(request: Request) -> tuple[Reason, ...]:
    """For kernels that take every request of their operator."""
    return ()


def rope(request: Request) -> tuple[Reason, ...]:
    """A scaling whose formula divides by zero, and heads beyond any model's."""
    assert isinstance(request.spec, RopeSpec)
    if request.spec.rotary_dim > MAX_ROTARY_DIM:
        return (Reason("size", "rotary_dim", request.spec.rotary_dim, f"at most {MAX_ROTARY_DIM}"),)
    return undefined(request.spec)
