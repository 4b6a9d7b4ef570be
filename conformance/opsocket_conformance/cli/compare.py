"""`opsocket conformance compare`: what changed between two reports."""

from __future__ import annotations

import click

from opsocket.cli.common import FAILED


@click.command("compare")
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@click.pass_context
def command(ctx: click.Context, old: str, new: str) -> None:
    """What changed between two JSON reports; ends with 1 where something that was right no longer is."""
    from opsocket_conformance.compare import REGRESSIONS, compare, profile_changes
    from opsocket_conformance.report.data import load

    before, after = load(old), load(new)
    changes = compare(before, after)
    for change in changes:
        click.echo(str(change))
    for name, was, now in profile_changes(before, after):
        click.echo(f"profile  {name}: {was} -> {now}")
    a, b = before["run"]["seconds"], after["run"]["seconds"]
    click.echo(f"{len(changes)} changes in {len(after['cases'])} cases; {a:.1f} s -> {b:.1f} s")
    if before["suite"]["digest"] != after["suite"]["digest"]:
        click.echo("the two are from different suites: a case of one name may ask another question", err=True)
    if any(change.kind in REGRESSIONS for change in changes):
        ctx.exit(FAILED)
