"""`opsocket conformance oracles`: whether two oracles, written apart from each other, give the same answers."""

from __future__ import annotations

import json
import sys
import time
from typing import IO, TYPE_CHECKING, Any

import click

from opsocket.cli.common import FAILED, backend_options, open_session, print_table, require_backend

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig
    from opsocket_conformance.second_oracle.agreement import Agreement, Tally

_SHOWN = 10
"""Disagreements and crashed cases that the screen has room for; the JSON has all of them."""


@click.command("oracles")
@backend_options
@click.option("--tier", type=click.Choice(["smoke", "default", "full", "large"]), default="default", show_default=True)
@click.option("--filter", "text", metavar="TEXT", default="", help="Only cases whose id contains TEXT.")
@click.option("--shard", metavar="I/N", default="", help="Only the I-th of N parts of the cases.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other random numbers for every case.")
@click.option(
    "--evaluator", type=click.Choice(["reference", "onnxruntime", "both"]), default="both", show_default=True,
    help="Who evaluates the second oracle's graphs.",
)  # fmt: skip
@click.option("--limit", type=float, default=600.0, show_default=True, help="Seconds that one case may take.")
@click.option("--json", "json_file", type=click.File("w", encoding="utf-8"), help="Write the comparison as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    config: RuntimeConfig,
    tier: Any,
    text: str,
    shard: str,
    seed: int,
    evaluator: str,
    limit: float,
    json_file: IO[str] | None,
) -> None:
    """Put every question that a run asks of the first oracle to the second as well; ends with 1 where they differ.

    The backend only makes the cases run: whether it is right is not judged here.
    """
    selection = require_backend(config)

    from opsocket_conformance.case import shard as part_of
    from opsocket_conformance.cases import cases_of
    from opsocket_conformance.guard import listening
    from opsocket_conformance.planned import parse_shard
    from opsocket_conformance.report import terminal
    from opsocket_conformance.runner import run
    from opsocket_conformance.second_oracle.agreement import Agreement
    from opsocket_conformance.second_oracle.evaluators import EVALUATORS
    from opsocket_conformance.verdicts import Verdict

    evaluators = [cls() for cls in EVALUATORS if evaluator in ("both", cls.name)]
    cases = part_of([case for case in cases_of(tier) if text in case.id], *parse_shard(shard))
    agreement, started = Agreement(evaluators), time.perf_counter()
    with (
        open_session(config, selection) as session,
        terminal.progress(len(cases), sys.stderr.isatty()) as advance,
        listening(agreement),
    ):
        results = run(cases, session, seed=seed, limit_s=limit, on_result=advance)
    stopped = {r.case: r.messages for r in results if r.verdict in (Verdict.CRASH, Verdict.NOT_RUN)}
    holds = agreement.holds and not stopped
    report = {
        "tier": tier,
        "filter": text,
        "shard": shard,
        "seed": seed,
        "cases": len(cases),
        "seconds": round(time.perf_counter() - started, 1),
        "evaluators": {e.name: e.versions() for e in evaluators},
        "holds": holds,
        "entry_points": {name: _json(tally) for name, tally in sorted(agreement.tallies.items())},
        "disagreements": [vars(found) for found in agreement.disagreements],
        "stopped": {case: list(messages) for case, messages in stopped.items()},
    }
    if json_file is not None:
        json_file.write(json.dumps(report, indent=1) + "\n")
    if json_file is not sys.stdout:
        _show(agreement, report)
    if not holds:
        ctx.exit(FAILED)


def _json(tally: Tally) -> dict[str, Any]:
    ratio = {name: worst if worst < float("inf") else None for name, worst in tally.ratio.items()}
    return {**vars(tally), "ratio": ratio}


def _show(agreement: Agreement, report: dict[str, Any]) -> None:
    """The table, and below it whatever is wrong."""
    evaluators = tuple(report["evaluators"])
    print_table(
        ("entry point", "questions", "elements", *(f"{name}: worst" for name in evaluators), "disagree"),
        [_row(name, tally, evaluators) for name, tally in sorted(agreement.tallies.items())],
    )
    for found in agreement.disagreements[:_SHOWN]:
        click.echo(f"DISAGREE  {found}")
    for case, messages in list(report["stopped"].items())[:_SHOWN]:
        click.echo(f"STOPPED   {case}: {(messages[-1] if messages else '').strip().splitlines()[-1:]}")
    uncovered = [name for name, tally in agreement.tallies.items() if not tally.covered]
    told = ", ".join(f"{name} ({versions})" for name, versions in report["evaluators"].items())
    questions = sum(tally.asked for tally in agreement.tallies.values())
    click.echo(
        f"{questions} questions in {report['cases']} cases, {report['seconds']:.1f} s, by {told}: "
        f"{len(agreement.disagreements)} disagreements, {len(report['stopped'])} cases stopped, "
        f"{len(uncovered)} entry points not covered; worst ratios are |first - second| / E at u = 2^-53"
    )
    if not agreement.tallies:
        click.echo("nothing was compared")


def _row(name: str, tally: Tally, evaluators: tuple[str, ...]) -> tuple[str, ...]:
    counts = (name, str(tally.asked))
    if not tally.covered:
        return (*counts, "not covered", *("" for _ in evaluators), "")
    return (*counts, str(tally.elements), *(_worst(tally, by) for by in evaluators), str(tally.disagreements))


def _worst(tally: Tally, evaluator: str) -> str:
    """A ratio, or that every part of every answer was the same to the last bit."""
    ratio = tally.ratio.get(evaluator)
    if ratio is None:
        return "not asked"
    return "identical" if ratio == 0 else f"{ratio:.3g}"
