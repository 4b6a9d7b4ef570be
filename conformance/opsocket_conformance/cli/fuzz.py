"""`opsocket conformance fuzz`: cases that nobody wrote down, and the smallest that fails."""

from __future__ import annotations

import json
import sys
from typing import IO, TYPE_CHECKING, Any

import click

from opsocket.cli.common import FAILED, UNAVAILABLE, backend_options, fail, open_session, require_backend

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig
    from opsocket_conformance.fuzz import Finding, Tally


@click.command("fuzz")
@backend_options
@click.option("--operator", "operators", metavar="A,B", default="", help="Only these operators or kinds of cases.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Time budget.")
@click.option("--examples", type=click.IntRange(0), default=0, help="At most so many examples.  [default: no limit]")
@click.option("--seed", type=int, default=0, show_default=True, help="Where to look: the same seed tries the same.")
@click.option("--limit", type=float, default=60.0, show_default=True, help="Seconds that one case may take.")
@click.option("--json", "json_file", type=click.File("w", encoding="utf-8"), help="Write what was found as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    config: RuntimeConfig,
    operators: str,
    seconds: float,
    examples: int,
    seed: int,
    limit: float,
    json_file: IO[str] | None,
) -> None:
    """Search for cases that fail, shrink them, and go on; ends with 1 where one was found."""
    selection = require_backend(config)
    try:
        from opsocket_conformance.fuzz import Fuzzer, checks_of
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        fail("fuzzing needs hypothesis: pip install 'opsocket[fuzz]'", UNAVAILABLE)
    checks = checks_of([name for name in operators.split(",") if name])
    backend = config.backend if config.backend != "auto" else str(selection.device)
    to_stderr = json_file is sys.stdout

    def show(finding: Finding) -> None:
        for line in _lines(finding, backend, seed):
            click.echo(line, err=to_stderr)

    def progress(tally: Tally) -> None:
        if sys.stderr.isatty() and tally.examples % 10 == 0:
            click.echo(f"\r{tally.examples} examples, {len(tally.findings)} findings ", nl=False, err=True)

    with open_session(config, selection) as session:
        tally = Fuzzer(
            session, checks, seed, seconds, examples, limit, on_finding=show, on_example=progress
        ).run()  # fmt: skip
    click.echo(
        f"{tally.examples} examples and {tally.shrinks} while shrinking, {len(tally.features)} distinct features, "
        f"{tally.unsupported_share:.1%} unsupported; {len(tally.findings)} findings, seed {seed}",
        err=to_stderr,
    )
    if json_file is not None:
        json_file.write(json.dumps(_json(tally, backend, seed), indent=1) + "\n")
    if tally.findings:
        ctx.exit(FAILED)


def _lines(finding: Finding, backend: str, seed: int) -> list[str]:
    messages = [line for message in finding.result.messages for line in message.splitlines()[-3:]]
    return [
        f"{finding.result.verdict}  {finding.case.id}",
        *(f"    {line}" for line in messages[:8]),
        f"    first seen as {finding.found.id}",
        f"    {_rerun(finding, backend, seed)}",
    ]


def _rerun(finding: Finding, backend: str, seed: int) -> str:
    return f"opsocket conformance -b {backend} --seed {seed} --case '{finding.case.id}'"


def _json(tally: Tally, backend: str, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "examples": tally.examples,
        "shrinks": tally.shrinks,
        "unsupported_share": round(tally.unsupported_share, 4),
        "features": sorted(tally.features),
        "verdicts": [
            {"operator": operator, "verdict": verdict.value, "examples": number}
            for (operator, verdict), number in sorted(tally.verdicts.items())
        ],
        "findings": [
            {
                "case": finding.case.id,
                "found": finding.found.id,
                "verdict": finding.result.verdict.value,
                "messages": list(finding.result.messages),
                "rerun": _rerun(finding, backend, seed),
            }
            for finding in tally.findings
        ],
    }
