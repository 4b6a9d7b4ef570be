"""What the cases of a suite come to as a whole: something must have passed, and the profiles asked for must be held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, cast

import pytest

from opsocket_conformance.case import Tier
from opsocket_conformance.profiles import PROFILES, Held, find_profiles, hold
from opsocket_conformance.pytest_outcome import pool
from opsocket_conformance.verdicts import Result, Verdict, count

Suite = tuple[str, Tier, tuple[str, ...]]
"""Name, tier, and profiles asked for."""


class SuiteVerdicts:
    """Made from the reports of single cases, which reach the controller of pytest-xdist too."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        chosen = any(
            getattr(option, name, None) for name in ("keyword", "markexpr", "deselect", "lf", "opsocket_filter")
        )
        self._whole = not chosen and not any("::" in argument for argument in config.args)
        self._results: defaultdict[Suite, dict[str, Result]] = defaultdict(dict)
        self._held: dict[Suite, list[Held]] = {}
        self._problems: list[str] = []

    def add(self, report: pytest.TestReport) -> None:
        """Take in a report that a case left its verdict in."""
        kept = cast(dict[str, Any], dict(report.user_properties))
        profiles = tuple(name for name in kept["opsocket_profiles"].split(",") if name)
        suite = kept["opsocket_suite"], kept["opsocket_tier"], profiles
        self._results[suite][kept["opsocket_case"]] = Result(
            kept["opsocket_case"], "", Verdict(kept["opsocket_verdict"])
        )

    def problems(self, asked: bool) -> list[str]:
        """Why the session fails beyond its failed tests. asked: cases were asked for on the command line."""
        self._problems = ["no case of opsocket conformance ran"] if asked and not self._results else []
        for suite, results in self._results.items():
            name, tier, profiles = suite
            wanted = find_profiles(profiles)
            planned = pool(tier, profiles)
            self._held[suite] = [hold(profile, planned, results) for profile in wanted or PROFILES]
            self._problems += (f"{name}: {problem}" for problem in self._of(results, self._held[suite], bool(wanted)))
        return self._problems

    def _of(self, results: dict[str, Result], held: list[Held], wanted: bool) -> Iterator[str]:
        counts = count(results.values())
        if not counts[Verdict.PASS]:
            yield "nothing passed: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
        wrong = ("not held", "incomplete") if self._whole else ("not held",)
        for each in held if wanted else ():
            if each.verdict in wrong:
                lacking = f", {len(each.missing)} cases missing, such as {each.missing[0]}" if each.missing else ""
                yield f"profile {each.profile} {each.verdict}{lacking}"

    def write(self, terminal: pytest.TerminalReporter) -> None:
        """A line per suite and per profile held, and why the session fails."""
        terminal.write_sep("=", "opsocket conformance")
        for suite, results in self._results.items():
            counts = count(results.values())
            told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
            terminal.write_line(f"{suite[0]}, tier {suite[1]}: {told}")
            for each in self._held.get(suite, ()):
                if each.verdict.startswith("held"):
                    terminal.write_line(f"  {each.profile}: {each.verdict} ({'; '.join(each.by)})")
        for problem in self._problems:
            terminal.write_line(f"FAILED {problem}", red=True)
