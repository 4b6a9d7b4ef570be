"""One case as a pytest test: which cases a suite has, how one is run, and how its verdict becomes an outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import pytest

from opsocket.operators import OpsocketError, Session
from opsocket_conformance.case import Case, Tier
from opsocket_conformance.cases import cases_of
from opsocket_conformance.exclusions import Exclusion, excluded
from opsocket_conformance.profiles import find_profiles
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Result, Verdict


@dataclass(frozen=True)
class Asked:
    """What a suite asks of a backend. name: of the suite, on screens. backend: what `--backend` would take, or ""."""

    name: str
    backend: str
    tier: Tier = "default"
    profiles: tuple[str, ...] = ()
    seed: int = 0
    limit_s: float = 60.0
    exclusions: tuple[Exclusion, ...] = ()

    def cases(self) -> list[Case]:
        """In the order of their ids. `ContractError` for a profile that there is not."""
        return pool(self.tier, self.profiles)


class OpenedOnce:
    """A session opened when it is first asked for; where that fails, the same error every time."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open = open_session
        self._session: Session | None = None
        self._error: OpsocketError | None = None

    def __call__(self) -> Session:
        if self._error is not None:
            raise self._error
        if self._session is None:
            try:
                self._session = self._open()
            except OpsocketError as error:
                self._error = error
                raise
        return self._session

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def pool(tier: Tier, profiles: Sequence[str]) -> list[Case]:
    """The cases of a tier, and of profiles where any are named."""
    wanted = find_profiles(profiles)
    return [c for c in cases_of(tier) if not wanted or any(p.includes(c.check.features()) for p in wanted)]


def settle(asked: Asked, case: Case, session: Callable[[], Session], record: Callable[[str, object], None]) -> None:
    """Run a case and end as pytest does: return for PASS, skip for UNSUPPORTED, xfail for EXCLUDED, else fail.

    record: takes what the verdict over the whole suite is made from; it travels with the test's report.
    """
    result = _result(asked, case, session)
    record("opsocket_suite", asked.name)
    record("opsocket_tier", asked.tier)
    record("opsocket_profiles", ",".join(asked.profiles))
    record("opsocket_case", case.id)
    record("opsocket_verdict", str(result.verdict))
    if result.provider:
        record("opsocket_provider", result.provider)
    if result.ratio is not None:
        record("opsocket_ratio", result.ratio)
    match result.verdict:
        case Verdict.PASS:
            return
        case Verdict.UNSUPPORTED:
            pytest.skip("unsupported: " + "; ".join(map(str, result.reasons)))
        case Verdict.EXCLUDED:
            pytest.xfail("excluded: " + "; ".join(result.messages))
    _fail(asked, result)


def _result(asked: Asked, case: Case, session: Callable[[], Session]) -> Result:
    result = Result(case.id, case.check.operator, Verdict.CRASH)
    exclusion = excluded(case.id, asked.exclusions)
    if exclusion is not None:
        return replace(result, verdict=Verdict.EXCLUDED, messages=(str(exclusion),))
    try:
        opened = session()
    except OpsocketError as error:
        return replace(result, messages=(f"no session to run it on: {error}",))
    return run_case(case, opened, asked.seed, asked.limit_s)


def _fail(asked: Asked, result: Result) -> NoReturn:
    first, *others = result.messages or ("without a word",)
    *trace, last = first.splitlines()
    lines = [f"{result.verdict}: {last}", *others, *trace]
    if asked.backend:
        seed = f" --seed {asked.seed}" if asked.seed else ""
        lines.append(f"again: opsocket conformance --backend {asked.backend} --case '{result.case}'{seed}")
    pytest.fail("\n".join(lines), pytrace=False)
