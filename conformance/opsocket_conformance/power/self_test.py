"""The suite tested by what it finds: every fault of the catalogue is put to the cases of its operator.

A fault is killed by a case that FAILs or CRASHes with it, and does not without it. Three kills by different
configurations make it "killed": one may be luck. Controls are so wrong that a whole run of them has to be red.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from opsocket.operators import Session
from opsocket_conformance.case import TIERS, Case
from opsocket_conformance.power.catalogue import find_fault
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Result, Verdict, count, failure_of

ENOUGH: Final = 5
KILLED: Final = 3
_IN_VAIN: Final = 100
"""So many cases without a kill: three are enough."""
_UNSEEN: Final = 400
"""So many cases without a kill, of a fault that says why no case can see it here: it survives."""
_OF_EACH_OPERATOR: Final = 8
Ask = Callable[[Case, str], Result]
"""Put a case to the session as it is ("") or with the fault of that name; any number of threads at once, where a caller
examines several faults together."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault. ran: cases put. kills: ids of those that found it, of different configurations.

    verdict: killed (3 kills or more; of a control, that the run is red), weak (1 or 2), survived, not run (it would
    take the process with it, and there is none to spare). unseen: why no case can find it, where that is known.
    """

    fault: str
    category: str
    operator: str
    wrong: str
    ran: int
    kills: tuple[str, ...]
    seconds: float
    verdict: Literal["killed", "weak", "survived", "not run"]
    unseen: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kills": list(self.kills)}


def self_test(
    session: Session,
    faults: Sequence[Fault],
    cases: Sequence[Case],
    seed: int = 0,
    on_result: Callable[[Outcome], None] = lambda outcome: None,
    *,
    limit_s: float = 60.0,
) -> list[Outcome]:
    """Every fault in turn, in this process."""
    ask = in_process(session, seed, limit_s)
    outcomes = []
    for fault in faults:
        outcome = not_run(fault) if fault.isolated else examine(fault, cases, ask)
        outcomes.append(outcome)
        on_result(outcome)
    return outcomes


def in_process(session: Session, seed: int = 0, limit_s: float = 60.0) -> Ask:
    """Ask a session of this process. Answers without a fault are remembered."""
    unbroken: dict[str, Result] = {}

    def ask(case: Case, fault: str) -> Result:
        if fault:
            broken: Any = FaultySession(session, find_fault(fault))
            return run_case(case, broken, seed, limit_s)
        if case.id not in unbroken:
            unbroken[case.id] = run_case(case, session, seed, limit_s)
        return unbroken[case.id]

    return ask


def not_run(fault: Fault) -> Outcome:
    return Outcome(fault.name, fault.category, fault.op, fault.wrong, 0, (), 0.0, "not run", fault.unseen)


def examine(
    fault: Fault, cases: Iterable[Case], ask: Ask, enough: int | None = None, first: Sequence[str] = ()
) -> Outcome:
    """Put a fault to the cases of its operator, the most telling first, until `enough` have found it; None: `ENOUGH`,
    and of a control the whole of its run. first: ids of cases that come before all others, such as found it on
    another backend."""
    ordered = in_order(fault, cases, first)
    if fault.category == "control":
        return _examine_control(fault, ordered, ask, enough)
    enough = ENOUGH if enough is None else enough
    kills: dict[Any, str] = {}
    ran, in_vain, seconds = 0, 0, 0.0
    for case in ordered:
        result = ask(case, fault.name)
        if result.verdict is Verdict.NOT_RUN:
            return not_run(fault)
        ran, in_vain, seconds = ran + 1, in_vain + 1, seconds + result.seconds
        if _red(result) and case.check not in kills:
            unbroken = ask(case, "")
            if unbroken.verdict is Verdict.NOT_RUN:
                return not_run(fault)  # an interrupt: nobody knows whether it is red by itself
            if not _red(unbroken):
                kills[case.check], in_vain = case.id, 0
        if len(kills) >= (KILLED if fault.isolated or in_vain > _IN_VAIN else enough):
            break
        if fault.unseen and in_vain > _UNSEEN:
            break
    verdict: Literal["killed", "weak", "survived"] = (
        "killed" if len(kills) >= KILLED else "weak" if kills else "survived"
    )
    return Outcome(
        fault.name, fault.category, fault.op, fault.wrong, ran, tuple(kills.values()), seconds, verdict, fault.unseen
    )


def _examine_control(fault: Fault, ordered: Iterable[Case], ask: Ask, enough: int | None) -> Outcome:
    """Some cases of each operator, as one run: it has to be red. It ends where `enough` are: no later case makes it
    green again."""
    results: list[Result] = []
    for case in sample(ordered, _OF_EACH_OPERATOR):
        results.append(ask(case, fault.name))
        if enough is not None and sum(map(_red, results)) >= enough:
            break
    kills = tuple(result.case for result in results if _red(result))
    seconds = sum(result.seconds for result in results)
    verdict: Literal["killed", "survived"] = "killed" if failure_of(count(results), ()) else "survived"
    return Outcome(fault.name, fault.category, fault.op, fault.wrong, len(results), kills, seconds, verdict)


def in_order(fault: Fault, cases: Iterable[Case], first: Sequence[str] = ()) -> list[Case]:
    """The cases of a fault's operator: those of `first`, in its order; then those whose ids hold most of what the fault
    says is telling; then the operator's own check, plain cases before long ones, small tiers before large ones, and all
    else by hash."""
    known = {case: number for number, case in enumerate(first)}

    def place(case: Case) -> tuple[Any, ...]:
        told = sum(text in case.id for text in fault.telling)
        other = not case.check.name.startswith(case.check.operator)
        slow = "long" in case.check.features()
        by_hash = hashlib.sha256(f"{fault.name}\0{case.id}".encode()).digest()
        return known.get(case.id, len(known)), -told, other, slow, TIERS.index(case.tier), by_hash

    return sorted((case for case in cases if fault.op in (case.check.operator, "*")), key=place)


def sample(cases: Iterable[Case], of_each: int) -> list[Case]:
    """The first so many cases of every kind of check and operator."""
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for case in cases:
        kind = (case.check.name, case.check.operator)
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= of_each:
            chosen.append(case)
    return chosen


def _red(result: Result) -> bool:
    return result.verdict in (Verdict.FAIL, Verdict.CRASH)
