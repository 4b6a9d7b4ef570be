"""Property-based search for cases that fail, beyond those that are written down: every finding is a case id, shrunk.

The fields of a case are drawn at random from `domains`; a case that fails is made smaller by hypothesis as long as one
of the same findings stays (MacIver and Donaldson, *Test-case reduction via test-case generation*, ECOOP 2020).
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hypothesis import HealthCheck, Phase, Verbosity, find, settings
from hypothesis.errors import Flaky, NoSuchExample

from opsocket.operators import ContractError, Session
from opsocket_conformance.case import Case, Check
from opsocket_conformance.domains import DOMAINS, cases
from opsocket_conformance.preconditions.negative import Negative
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Result, Verdict

_ROUND: Final = 100
_BAD: Final = (Verdict.FAIL, Verdict.CRASH)


@dataclass(frozen=True)
class Finding:
    """case: the smallest that fails in this way; found: the first that did. result: what the smallest came to."""

    case: Case
    found: Case
    result: Result


@dataclass
class Tally:
    """What a search has tried: examples, verdicts by operator, distinct features of cases that ran, findings."""

    examples: int = 0
    shrinks: int = 0
    verdicts: Counter[tuple[str, Verdict]] = field(default_factory=Counter)
    features: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def count(self, verdict: Verdict) -> int:
        return sum(number for (_, got), number in self.verdicts.items() if got is verdict)

    @property
    def unsupported_share(self) -> float:
        return self.count(Verdict.UNSUPPORTED) / max(self.examples, 1)


def checks_of(operators: Sequence[str]) -> tuple[type[Check], ...]:
    """The kinds of cases of these operators, by the name of either; all of them for none. ContractError lists names."""
    kinds = tuple(DOMAINS)
    if not operators:
        return kinds
    # Negative tests are of every operator: they are asked for by their own name.
    named = {
        name: [kind for kind in kinds if name == kind.name or (kind is not Negative and name == kind().operator)]
        for name in operators
    }
    for name, found in named.items():
        if not found:
            raise ContractError("operator", f"among {sorted({k.name for k in kinds})}", repr(name))
    return tuple(kind for kind in kinds if any(kind in found for found in named.values()))


def kinds_of(result: Result) -> frozenset[tuple[str, str]]:
    """What is wrong, without the numbers: by this, findings are the same or not."""
    return frozenset((result.operator, _kind(message)) for message in result.messages)


def _kind(message: str) -> str:
    lines = message.splitlines()
    if lines[0].startswith("Traceback"):
        where = [line for line in lines if line.lstrip().startswith('File "')]
        return f"{lines[-1].partition(':')[0]} in {where[-1].rpartition(' in ')[2]}"
    return re.sub(r"\[.*?\]|\d+", "", lines[0].partition(":")[0]).strip()


@dataclass(eq=False)
class Fuzzer:
    """A search over the cases of `checks`. seconds: budget, by which new examples stop (a case that is being shrunk may
    take a quarter more); examples: at most so many, 0 for no limit. The same seed tries the same cases."""

    session: Session
    checks: Sequence[type[Check]]
    seed: int = 0
    seconds: float = 60.0
    examples: int = 0
    limit_s: float = 60.0
    on_finding: Callable[[Finding], None] = lambda finding: None
    on_example: Callable[[Tally], None] = lambda tally: None
    tally: Tally = field(default_factory=Tally)
    _known: set[tuple[str, str]] = field(default_factory=set)
    _started: float = 0.0

    def run(self) -> Tally:
        """Search until the budget is spent."""
        self._started = time.monotonic()
        rounds = random.Random(self.seed)
        while not self._spent():
            # One kind of case per round: each shrinks towards its own plainest.
            kind = rounds.choice(self.checks)
            self._round(kind, random.Random(rounds.getrandbits(64)))
        return self.tally

    def _late(self, share: float = 1.0) -> bool:
        return time.monotonic() - self._started >= self.seconds * share

    def _spent(self) -> bool:
        return self._late() or bool(self.examples and self.tally.examples >= self.examples)

    def _round(self, kind: type[Check], rng: random.Random) -> None:
        failing: list[tuple[Case, Result]] = []
        wanted: frozenset[tuple[str, str]] = frozenset()

        def fails(case: Case) -> bool:
            """Whether a case fails in a way that is not known yet; once one has, in one of its ways."""
            nonlocal wanted
            if self._late(1.25) if failing else self._spent():
                return False
            result = self._try(case, shrinking=bool(failing))
            kinds = kinds_of(result) if result.verdict in _BAD else frozenset()
            if not (kinds & wanted if failing else kinds - self._known):
                return False
            wanted = wanted or kinds - self._known
            failing.append((case, result))
            return True

        left = self.examples - self.tally.examples if self.examples else _ROUND
        options = settings(
            max_examples=min(_ROUND, max(left, 1)), deadline=None, database=None, verbosity=Verbosity.quiet,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        smallest = None
        try:
            smallest = find(cases(kind), fails, settings=options, random=rng)
        except NoSuchExample:
            return
        except Flaky:
            if not failing:
                raise
        case, result = next((pair for pair in reversed(failing) if pair[0] == smallest), failing[-1])
        self._known |= kinds_of(result) | wanted
        finding = Finding(case, failing[0][0], result)
        self.tally.findings.append(finding)
        self.on_finding(finding)

    def _try(self, case: Case, shrinking: bool) -> Result:
        result = run_case(case, self.session, self.seed, self.limit_s)
        if shrinking:
            self.tally.shrinks += 1
            return result
        self.tally.examples += 1
        self.tally.verdicts[result.operator, result.verdict] += 1
        if result.verdict is not Verdict.UNSUPPORTED:
            self.tally.features |= case.check.features()
        self.on_example(self.tally)
        return result
