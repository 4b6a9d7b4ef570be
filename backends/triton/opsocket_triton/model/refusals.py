"""What the kernels of this family do not do, as reasons. No framework is imported here."""

from __future__ import annotations

from typing import Final

from opsocket.operators import MoERouteSpec, Reason, Request, RopeSpec, SampleSpec
from opsocket.operators.rope_frequencies import undefined

MAX_EXPERTS: Final = 1024
"""Logits of a token that the registers of a program hold."""
MAX_LOGITS: Final = 2**20
"""Whose masses, 2^40 at most, sum to what an int64 and an f64 quotient of it hold well."""


def rope(request: Request) -> tuple[Reason, ...]:
    """A scaling whose formula divides by zero."""
    assert isinstance(request.spec, RopeSpec)
    return undefined(request.spec)


def moe_route(request: Request) -> tuple[Reason, ...]:
    """More experts than are compared in registers."""
    assert isinstance(request.spec, MoERouteSpec)
    got = request.spec.num_experts
    return (Reason("num_experts", "num_experts", got, f"at most {MAX_EXPERTS}"),) if got > MAX_EXPERTS else ()


def sample(request: Request) -> tuple[Reason, ...]:
    """More logits than exact sums of masses are taken of."""
    assert isinstance(request.spec, SampleSpec)
    got = request.spec.width
    return (Reason("width", "width", got, f"at most {MAX_LOGITS}"),) if got > MAX_LOGITS else ()
