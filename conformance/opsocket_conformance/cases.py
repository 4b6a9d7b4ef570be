"""The cases: which questions are put, in which tier. Data; ids are unique and do not depend on order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

from opsocket_conformance.case import TIERS, Case, Tier
from opsocket_conformance.contract import probes as contract
from opsocket_conformance.large import cache as large_caches
from opsocket_conformance.large import rows as large_rows
from opsocket_conformance.operators import (
    add,
    argmax,
    matmul,
    merge_states,
    moe_combine,
    moe_route,
    moe_sort,
    rms_norm,
    rope,
    sample,
    silu_mul,
    take_rows,
)
from opsocket_conformance.operators.attention import latent
from opsocket_conformance.operators.attention import probes as attention
from opsocket_conformance.operators.cache import probes as cache_operators
from opsocket_conformance.operators.capture import probes as capture
from opsocket_conformance.preconditions import probes as preconditions
from opsocket_conformance.traffic import check as traffic

_FAMILIES: Final[tuple[Callable[[], Iterable[Case]], ...]] = tuple(
    module.cases
    for module in (
        attention, latent, merge_states, cache_operators, matmul, rms_norm, rope, silu_mul, add, take_rows, moe_route,
        moe_sort, moe_combine, argmax, sample, capture, preconditions, contract, traffic,
        large_caches, large_rows,
    )
)  # fmt: skip


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case there is, by id; where two families name one case, the smaller tier stands."""
    found: dict[str, Case] = {}
    for family in _FAMILIES:
        for case in family():
            known = found.get(case.id)
            if known is None or TIERS.index(case.tier) < TIERS.index(known.tier):
                found[case.id] = case
    return tuple(found[id] for id in sorted(found))


def cases_of(tier: Tier) -> tuple[Case, ...]:
    """The cases that a run of a tier includes."""
    upto = TIERS.index(tier)
    return tuple(case for case in all_cases() if TIERS.index(case.tier) <= upto)
