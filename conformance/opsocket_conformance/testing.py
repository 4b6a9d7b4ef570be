"""For plugin authors: a class to inherit, which brings every conformance case as a test.

from opsocket_conformance.testing import ConformanceSuite

class TestMyChip(ConformanceSuite):
    backend = "mychip"
    profiles = ("decoder",)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

import opsocket
from opsocket.operators import ContractError, Session
from opsocket_conformance.case import Case, Tier
from opsocket_conformance.exclusions import load_exclusions
from opsocket_conformance.pytest_outcome import Asked, OpenedOnce, settle


class ConformanceSuite:
    """One parametrized test over the cases, by their ids; `pytest -k` chooses among them.

    backend: what `--backend` takes. tier: smoke, default or full. profiles: only their cases, and the run fails unless
    every one of them is held. seed: other random numbers. limit_s: seconds that one case may take. exclude: a YAML file
    of {case, reason, expires}. The run also fails where not a single case passed.
    """

    backend: ClassVar[str] = ""
    tier: ClassVar[Tier] = "default"
    profiles: ClassVar[tuple[str, ...]] = ()
    seed: ClassVar[int] = 0
    limit_s: ClassVar[float] = 60.0
    exclude: ClassVar[str] = ""

    _session: ClassVar[OpenedOnce]

    @classmethod
    def open_session(cls) -> Session:
        """The session that the cases run on. Override it to open one that is not found by a backend's name."""
        if not cls.backend:
            raise ContractError(f"{cls.__name__}.backend", "a backend's name, or open_session overridden", "nothing")
        return opsocket.open(cls.backend)

    @classmethod
    def teardown_class(cls) -> None:
        if "_session" in vars(cls):
            cls._session.close()

    @classmethod
    def _opened(cls) -> Session:
        if "_session" not in vars(cls):  # a class of its own has one of its own
            cls._session = OpenedOnce(cls.open_session)
        return cls._session()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "conformance_case" in metafunc.fixturenames:
            asked = _asked(type(self))
            metafunc.parametrize("conformance_case", [pytest.param(case, id=case.id) for case in asked.cases()])

    def test_conformance(self, conformance_case: Case, record_property: Callable[[str, object], None]) -> None:
        settle(_asked(type(self)), conformance_case, self._opened, record_property)


def _asked(suite: type[ConformanceSuite]) -> Asked:
    exclusions = load_exclusions(suite.exclude) if suite.exclude else ()
    return Asked(
        suite.__name__, suite.backend, suite.tier, tuple(suite.profiles), suite.seed, suite.limit_s, exclusions
    )
