"""A correct session, and ways to break it: each fault is a small wrapper that the suite has to see through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import opsocket
from opsocket.operators import Session
from opsocket_conformance.case import parse_case
from opsocket_conformance.operators import CHECKS
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.runner import run_case
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
