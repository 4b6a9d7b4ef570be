"""What a case can come to, and what a whole run comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from opsocket.operators import Reason


class Verdict(StrEnum):
    """PASS: ran where it should, and agrees. FAIL: a wrong result, error, denial or place. CRASH: an exception that the
    interface does not allow, a time limit, a lost device. UNSUPPORTED: denied, and the denial is consistent; never
    green by itself. EXCLUDED: set aside by name, with a reason and a date. NOT_RUN: the run ended before it."""

    PASS = "PASS"
    FAIL = "FAIL"
    CRASH = "CRASH"
    UNSUPPORTED = "UNSUPPORTED"
    EXCLUDED = "EXCLUDED"
    NOT_RUN = "NOT_RUN"


@dataclass(frozen=True)
class Filtered:
    """A matched filter's reading for one knob: `t` is how much of the fault is in the result (0 none, 1 all of it),
    `noise` how far a correct result could push t. Only a reading with noise below 0.1 is credited."""

    t: float
    noise: float

    CREDIT_BELOW = 0.1
    FAIL_ABOVE = 0.25

    @property
    def credited(self) -> bool:
        return self.noise < self.CREDIT_BELOW

    @property
    def failed(self) -> bool:
        return self.credited and not abs(self.t) <= self.FAIL_ABOVE


@dataclass(frozen=True)
class Result:
    """What one case came to.

    ratio: the largest |out - ref| / E over the elements compared, None where nothing was compared by tolerance.
    provider, tier: whose kernels ran, by receipt; "" where none ran. messages: every finding, the worst first. notes:
    what could be observed here, and what could not. launched: by "operator/provider", and "" for whatever no plan's
    `run` launched, what a backend recorded, where that was asked for; trace: a digest of all of it, in order.
    """

    case: str
    operator: str
    verdict: Verdict
    provider: str = ""
    tier: str = ""
    ratio: float | None = None
    elements: int = 0
    filters: Mapping[str, Filtered] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    seconds: float = 0.0
    launched: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trace: str = ""


def count(results: Iterable[Result]) -> dict[Verdict, int]:
    """How many of each verdict; every verdict is there."""
    counts = dict.fromkeys(Verdict, 0)
    for result in results:
        counts[result.verdict] += 1
    return counts


def failure_of(counts: Mapping[Verdict, int], broken_profiles: Iterable[str]) -> str:
    """Why a run is red, or "" if it is green. Green needs something that passed, nothing wrong, nothing left out, and
    every profile that was asked for."""
    if not sum(counts.values()):
        return "no case was planned"
    for verdict in (Verdict.CRASH, Verdict.FAIL, Verdict.NOT_RUN):
        if counts[verdict]:
            return f"{counts[verdict]} {verdict}"
    if not counts[Verdict.PASS]:
        return "nothing passed: " + ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    broken = tuple(broken_profiles)
    return "not held: " + ", ".join(broken) if broken else ""
