"""`opsocket conformance verify`: is a report whole, of this suite, and does it repeat."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from opsocket.cli.common import FAILED, config_option, require_backend

if TYPE_CHECKING:
    from opsocket.operators import BackendInfo, DeviceInfo
    from opsocket.runtime import RuntimeConfig
    from opsocket_conformance.case import Case
    from opsocket_conformance.verdicts import Result


@click.command()
@click.argument("report_file", metavar="REPORT", type=click.Path())
@click.option("--rerun", "number", type=click.IntRange(0), default=50, show_default=True, help="Cases to run again.")
@click.option("--draw", "seed", type=int, help="Which cases: the number that an earlier run printed.")
@click.option("--limit", type=float, default=60.0, show_default=True, help="Seconds that one case may take.")
@click.option("--backend", "-b", metavar="NAME", help="What to run on (default: what the report ran on).")
@config_option
@click.pass_context
def command(
    ctx: click.Context,
    config: RuntimeConfig,
    report_file: str,
    number: int,
    seed: int | None,
    limit: float,
    backend: str | None,
) -> None:
    """Check a JSON report: whole, unchanged, from this very suite, and random cases come out the same again.

    Ends with 1 where not, and names each reason. --rerun 0 needs no backend.
    """
    from opsocket_conformance.report.reading import load
    from opsocket_conformance.report.text import printable
    from opsocket_conformance.verify import wholeness

    report = load(report_file)
    problems: list[str] = wholeness(report)
    if not problems:
        click.echo(f"whole: {len(report['cases'])} cases of suite {report['suite']['digest'][:16]}")
        if number:
            seed = secrets.randbelow(2**32) if seed is None else seed
            problems += _run_again(report, config, backend, number, seed, limit)
    for problem in problems:
        click.echo(f"refused: {printable(problem)}")
    if problems:
        ctx.exit(FAILED)


def _run_again(
    report: dict[str, Any], config: RuntimeConfig, backend: str | None, number: int, seed: int, limit: float
) -> Iterator[str]:
    from opsocket_conformance.isolation import run_isolated
    from opsocket_conformance.ladder.climb import SLOWER
    from opsocket_conformance.verify import draw, rerun, same_place

    asked = report["run"]
    pins = ",".join(f"{operator}={provider}" for operator, provider in asked["pins"].items())
    wanted = {"backend": backend or asked["backend"], **({"operators": pins} if pins and not backend else {})}
    config = config.override("argument", wanted)
    info, device, environment = _place(report, config, there=not backend)
    chosen = config.override("argument", {"backend": str(device)})
    limit_s = limit * SLOWER if device.emulated else limit

    def again(cases: Sequence[Case]) -> list[Result]:
        return run_isolated(
            cases, chosen, jobs=1, seed=asked["seed"], limit_s=limit_s, exclusions=(), environment=environment
        )

    same = same_place(report, info, device)
    ids = draw(report, number, seed)
    where = "like the report's: ratios have to repeat" if same else "other than the report's: verdicts have to repeat"
    click.echo(f"running {len(ids)} cases again (--draw {seed}) on {device}, hardware and versions {where}")
    found = rerun(report, ids, again, same=same)
    if not found:
        click.echo(f"{len(ids)} of {len(ids)} came out the same")
    yield from map(str, found)


def _place(
    report: dict[str, Any], config: RuntimeConfig, *, there: bool
) -> tuple[BackendInfo, DeviceInfo, Mapping[str, str]]:
    """Where to run again: what `config` names, or `there`, what stood in for the report's chip where something did."""
    from opsocket.runtime.select import validated_backend
    from opsocket_conformance.ladder.climb import stand_in

    device = report["device"]
    if there and device["numerics"] != "device":
        found = validated_backend(config)
        ladder = found.ladder()
        if ladder is not None and device["arch"] in ladder.arches:
            return found.info, *stand_in(found, ladder, device["arch"])
    selection = require_backend(config)
    return selection.backend.info, selection.device, {}
