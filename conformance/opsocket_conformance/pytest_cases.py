"""`--opsocket-backend`: every planned case as an item of its own, whose name is the case's id."""

from __future__ import annotations

from typing import Any

import pytest

import opsocket
from opsocket.operators import OpsocketError
from opsocket.runtime import load_config, select
from opsocket_conformance.case import Case
from opsocket_conformance.exclusions import load_exclusions
from opsocket_conformance.pytest_outcome import Asked, OpenedOnce, settle


class ConformanceRun:
    """Plans the cases when pytest starts, opens one session when the first of them runs, closes it at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._option = config.option
        try:
            self.asked = self._asked()
            self._cases = [case for case in self.asked.cases() if self._option.opsocket_filter in case.id]
            select(load_config(None, flags={"backend": self.asked.backend}))
        except OpsocketError as error:
            raise pytest.UsageError(f"opsocket: {error}") from error
        self.session = OpenedOnce(lambda: opsocket.open(self.asked.backend))

    def _asked(self) -> Asked:
        option, excluded = self._option, self._option.opsocket_exclude
        return Asked(
            name=option.opsocket_backend,
            backend=option.opsocket_backend,
            tier=option.opsocket_tier,
            profiles=tuple(name for name in option.opsocket_profile.split(",") if name),
            seed=option.opsocket_seed,
            limit_s=option.opsocket_limit,
            exclusions=load_exclusions(excluded) if excluded else (),
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Before others look at the items, so that -k and --last-failed choose among these too."""
        suite = ConformanceCases.from_parent(session, name="opsocket", nodeid=f"opsocket[{self.asked.name}]")
        items.extend(CaseItem.from_parent(suite, name=case.id, case=case, run=self) for case in self._cases)

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        self.session.close()


class ConformanceCases(pytest.Collector):
    """The parent of the items: no file has them."""

    def collect(self) -> list[pytest.Item]:
        return []


class CaseItem(pytest.Item):
    """One case."""

    def __init__(self, *, case: Case, run: ConformanceRun, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._case, self._run = case, run

    def runtest(self) -> None:
        settle(self._run.asked, self._case, self._run.session, lambda *kept: self.user_properties.append(kept))

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.name
