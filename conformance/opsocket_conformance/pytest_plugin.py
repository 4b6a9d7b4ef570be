"""The conformance cases inside someone's own pytest run: `pytest --opsocket-backend mychip`, no test file needed.

This module is loaded by every pytest run where opsocket is installed, so it imports nothing until a case is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from opsocket_conformance.pytest_verdict import SuiteVerdicts

_RUN = "opsocket-conformance-run"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("opsocket", "opsocket conformance")
    add = group.addoption
    add("--opsocket-backend", metavar="NAME", help="Run the conformance cases on this backend, each as a test.")
    add("--opsocket-tier", metavar="TIER", default="default", choices=["smoke", "default", "full", "large"])
    add("--opsocket-profile", metavar="A,B", default="", help="Only these profiles, and all of them must be held.")
    add("--opsocket-filter", metavar="TEXT", default="", help="Only cases whose id contains TEXT.")
    add("--opsocket-seed", metavar="N", type=int, default=0, help="Other random numbers for every case.")
    add("--opsocket-limit", metavar="S", type=float, default=60.0, help="Seconds that one case may take.")
    add("--opsocket-exclude", metavar="FILE", help="YAML list of {case, reason, expires}.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Listener(config), "opsocket-conformance-verdicts")
    if config.getoption("opsocket_backend"):
        from opsocket_conformance.pytest_cases import ConformanceRun

        config.pluginmanager.register(ConformanceRun(config), _RUN)


class _Listener:
    """Hears of every case that ran, here or in a worker of pytest-xdist, and passes it on to the suites' verdicts."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._verdicts: SuiteVerdicts | None = None

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if any(name == "opsocket_case" for name, _ in report.user_properties):
            self._heard().add(report)

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        asked = self._config.pluginmanager.has_plugin(_RUN)
        in_worker = hasattr(self._config, "workerinput")  # the controller hears from all of them
        if in_worker or self._config.option.collectonly or not (asked or self._verdicts):
            return
        problems = self._heard().problems(asked)
        if problems and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._verdicts is not None:
            self._verdicts.write(terminalreporter)

    def _heard(self) -> SuiteVerdicts:
        from opsocket_conformance.pytest_verdict import SuiteVerdicts

        self._verdicts = self._verdicts or SuiteVerdicts(self._config)
        return self._verdicts
