"""`opsocket conformance compare`: what changed between two reports."""

from __future__ import annotations

import click

from opsocket.cli.common import FAILED, json_option, print_json


@click.command()
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@click.option("--slower", type=click.FloatRange(1), metavar="X", help="A case X times as slow is a regression too.")
@json_option
@click.pass_context
def command(ctx: click.Context, old: str, new: str, slower: float | None, as_json: bool) -> None:
    """What changed between two JSON reports; ends with 1 where something that was right no longer is."""
    from opsocket_conformance.compare import compare, is_regression
    from opsocket_conformance.report.reading import load
    from opsocket_conformance.report.text import printable

    before, after = load(old), load(new)
    changes = compare(before, after)
    worse = [change for change in changes if is_regression(change, slower)]
    same_suite = before["suite"]["digest"] == after["suite"]["digest"]
    if as_json:
        print_json(
            {
                "regression": bool(worse),
                "same_suite": same_suite,
                "seconds": [before["run"]["seconds"], after["run"]["seconds"]],
                "changes": [{**change.to_json(), "regression": change in worse} for change in changes],
            }
        )
    else:
        for change in changes:
            click.echo(printable(str(change)))
        a, b = before["run"]["seconds"], after["run"]["seconds"]
        click.echo(
            f"{len(changes)} changes, {len(worse)} of them regressions, in {len(after['cases'])} cases; "
            f"{a:.1f} s -> {b:.1f} s"
        )
        if not same_suite:
            click.echo("the two are from different suites: a case of one name may ask another question", err=True)
    if worse:
        ctx.exit(FAILED)
