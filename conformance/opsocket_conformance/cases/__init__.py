"""The cases: which questions are put, in which tier. Data; ids are unique and do not depend on order."""

from __future__ import annotations

from functools import cache

from opsocket_conformance.case import TIERS, Case, Tier
from opsocket_conformance.cases import attention, caches, model, negative, weights


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case there is, by id; where two families name one case, the smaller tier stands."""
    found: dict[str, Case] = {}
    for family in (attention, caches, weights, model, negative):
        for case in family.cases():
            known = found.get(case.id)
            if known is None or TIERS.index(case.tier) < TIERS.index(known.tier):
                found[case.id] = case
    return tuple(found[id] for id in sorted(found))


def cases_of(tier: Tier) -> tuple[Case, ...]:
    """The cases that a run of a tier includes."""
    upto = TIERS.index(tier)
    return tuple(case for case in all_cases() if TIERS.index(case.tier) <= upto)
