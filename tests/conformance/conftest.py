"""A correct session, and ways to break it: each fault is a small wrapper that the suite has to see through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import opsocket
from opsocket.operators import Session
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.planned import plan_run, why_red
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.profiles import PROFILES, hold
from opsocket_conformance.report import data
from opsocket_conformance.runner import run, run_case
from opsocket_conformance.verdicts import Result


@pytest.fixture(scope="session")
def session() -> Session:
    return opsocket.open("cpu", threads=1)


@pytest.fixture
def out_of_place(session) -> FaultySession:
    """The right session, saying that its arrays can't be written to."""
    return FaultySession(session, Fault(""), in_place=False)


@pytest.fixture
def judge(session) -> Callable[..., Result]:
    """judge(case id, op, hook=...) -> the result of that case on a session with that fault; without op, with none."""

    def judge(case_id: str, op: str = "", seed: int = 0, **hooks: Any) -> Result:
        under_test = FaultySession(session, Fault(op, **hooks)) if op else session
        return run_case(parse_case(case_id, CHECKS), under_test, seed, 60.0)

    return judge


@pytest.fixture(scope="session")
def make_report(session) -> Callable[..., dict[str, Any]]:
    """make_report(text) -> the sealed report of a real run of the smoke cases whose ids contain it."""

    def make_report(text: str, change: Callable[[list[Result]], None] = lambda results: None) -> dict[str, Any]:
        planned = plan_run("smoke", (), text=text)
        results = run(planned.cases, session)
        change(results)
        by_id = {result.case: result for result in results}
        held = [hold(profile, planned.pool, by_id) for profile in PROFILES]
        asked = data.Run("cpu", {}, "smoke", 0, (), "", text)
        reason = why_red(results, held, asked=False, whole=not text)
        info, device = session.backend.info, session.device
        return data.build(asked, info, device, planned.cases, results, held, reason, 1.5)

    return make_report
