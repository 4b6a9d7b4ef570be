"""`opsocket conformance --self-test`: the suite, tested by the faults that it finds."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import click

from opsocket.operators import DeviceInfo, FormatError
from opsocket_conformance.case import Case
from opsocket_conformance.isolation import Pool, Question
from opsocket_conformance.power.fault import Fault
from opsocket_conformance.power.matrix import summary
from opsocket_conformance.power.self_test import Outcome, examine, not_run
from opsocket_conformance.verdicts import Result

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig

_DEADLY_LIMIT_S: Final = 3.0
"""For a fault that may hang: the limit has to pass each time that it is found. A case that takes longer by itself has
`_DEADLY_TIMES` its own time, so that no slow backend is taken for a hanging one."""
_DEADLY_TIMES: Final = 4.0


def self_test(
    cases: Sequence[Case],
    config: RuntimeConfig,
    *,
    faults: Sequence[Fault],
    jobs: int,
    seed: int,
    limit_s: float,
    quiet: bool,
    enough: int | None = None,
    found: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Outcome]:
    """Put every fault to the cases of its operator, in worker processes. enough: as `examine` takes it. found: cases
    that found a fault elsewhere, by its name: they are tried first, of these the cheapest."""
    deadly = {fault.name for fault in faults if fault.isolated}
    pool, unbroken = Pool(config, jobs, limit_s), dict[str, Result]()
    outcomes: dict[str, Outcome] = {}

    def ask(case: Case, fault: str) -> Result:
        if fault in deadly:
            limit = max(_DEADLY_LIMIT_S, _DEADLY_TIMES * ask(case, "").seconds)
            return pool.ask(Question(case, seed, fault, limit))
        if fault:
            return pool.ask(Question(case, seed, fault))
        if case.id not in unbroken:
            unbroken[case.id] = pool.ask(Question(case, seed))
        return unbroken[case.id]

    def keep(fault: Fault, outcome: Outcome) -> None:
        outcomes[fault.name] = outcome
        if not quiet:
            told = f"{len(outcome.kills)} of {outcome.ran} cases found it, {outcome.seconds:.1f} s"
            click.echo(f"[{len(outcomes)}/{len(faults)}] {outcome.verdict:<9} {fault.name}: {told}", err=True)

    # The dear ones first: those that take a process with them at every kill.
    order = sorted(faults, key=lambda fault: not fault.isolated)

    def cheapest(fault: Fault) -> list[str]:
        """What found it elsewhere, by the time that it took here without a fault; what was not asked yet comes last."""
        known = found.get(fault.name, ())
        return sorted(known, key=lambda case: unbroken[case].seconds if case in unbroken else math.inf)

    pool.map(lambda fault: examine(fault, cases, ask, enough, cheapest(fault)), order, keep)
    # An interrupt leaves the rest not run, and keeps what was found.
    return [outcomes.get(fault.name) or not_run(fault) for fault in faults]


def failure(outcomes: Sequence[Outcome]) -> str:
    """Why the suite is too weak, "" where it is not: 98 % of the faults killed, and every control."""
    if not outcomes:
        return "no fault was planned"
    controls = [o.fault for o in outcomes if o.category == "control" and o.verdict != "killed"]
    if controls:
        return f"controls that were not red: {', '.join(controls)}"
    killed = sum(outcome.verdict == "killed" for outcome in outcomes)
    return "" if killed >= 0.98 * len(outcomes) else f"only {killed} of {len(outcomes)} faults were killed"


def found_by(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The cases that found each fault, by its name, in what `to_json` made of another run; `FormatError` where it is
    nothing of the kind. It only says what to try first, so it may be of any backend and of an older suite."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {outcome["fault"]: tuple(map(str, outcome["kills"])) for outcome in content["power"]}
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(path, "file", str(error)) from None
    except (KeyError, TypeError):
        raise FormatError(path, "power", "wanted what --self-test --json writes") from None


def to_json(outcomes: Sequence[Outcome], seconds: float, device: DeviceInfo) -> dict[str, Any]:
    """What `--power` puts into a report, and on which device it was found."""
    from opsocket_conformance import SUITE_VERSION
    from opsocket_conformance.evidence import suite_digest

    suite = {"version": SUITE_VERSION, "digest": suite_digest()}
    power = [outcome.to_json() for outcome in outcomes]
    return {"suite": suite, "device": asdict(device), "seconds": round(seconds, 1), "power": power}


def tell(outcomes: Sequence[Outcome], reason: str) -> None:
    """The verdict for people."""
    for outcome in outcomes:
        if outcome.verdict != "killed":
            click.echo(f"{outcome.verdict}: {outcome.fault} ({outcome.wrong})", err=not sys.stdout.isatty())
    click.echo(summary(outcomes))
    click.echo(f"red: {reason}" if reason else "green")
