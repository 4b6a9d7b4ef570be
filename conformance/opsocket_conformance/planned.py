"""Which cases a run is made of, and whether it is green: for the run itself, and for whoever checks its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opsocket.operators import ContractError
from opsocket_conformance.case import Case, Tier, parse_case, shard
from opsocket_conformance.cases import cases_of
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.profiles import Held, Profile
from opsocket_conformance.verdicts import Result, count, failure_of


@dataclass(frozen=True)
class Planned:
    """cases: those of the run. pool: all those of its tier and profiles, by which a profile is complete or not."""

    cases: tuple[Case, ...]
    pool: tuple[Case, ...]


def parse_shard(text: str) -> tuple[int, int]:
    """(number, count) of I/N; all of it for "". `ContractError` where it is neither."""
    if not text:
        return 1, 1
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ContractError("shard", "I/N with 1 <= I <= N", repr(text))
    return int(number), int(parts)


def plan_run(
    tier: Tier,
    profiles: Sequence[Profile],
    case_ids: Sequence[str] = (),
    text: str = "",
    part: tuple[int, int] = (1, 1),
) -> Planned:
    """The cases of a tier, of some profiles, by id, with `text` in it, of one part. `ContractError` for a wrong id."""
    pool = cases_of(tier)
    if profiles:
        pool = tuple(case for case in pool if any(p.includes(case.check.features()) for p in profiles))
    if case_ids:
        return Planned(tuple(parse_case(id, CHECKS) for id in dict.fromkeys(case_ids)), pool)
    return Planned(tuple(shard([case for case in pool if text in case.id], *part)), pool)


def why_red(results: Sequence[Result], held: Sequence[Held], *, asked: bool, whole: bool) -> str:
    """Why a run is red, "" for green. asked: the profiles were asked for by name. whole: nothing was left out by hand,
    so that profiles can be demanded."""
    wrong = ("not held", "incomplete") if whole else ("not held",)
    missing = [h.profile for h in held if h.verdict in wrong] if asked else []
    if whole and not asked and not any(h.by for h in held):
        missing = ["any profile"]
    return failure_of(count(results), missing)
