"""`opsocket conformance stability`: whether any verdict depends on the random numbers."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from opsocket.cli.common import FAILED, backend_options, require_backend

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig


@click.command("stability")
@backend_options
@click.option("--tier", type=click.Choice(["smoke", "default", "full", "large"]), default="smoke", show_default=True)
@click.option("--seeds", type=click.IntRange(2, 1000), default=20, show_default=True, help="How many.")
@click.option("--filter", "text", metavar="TEXT", default="", help="Only cases whose id contains TEXT.")
@click.option("--jobs", "-j", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--limit", type=float, default=60.0, show_default=True, help="Seconds that one case may take.")
@click.pass_context
def command(
    ctx: click.Context, config: RuntimeConfig, tier: Any, seeds: int, text: str, jobs: int, limit: float
) -> None:
    """Run the same cases under several seeds; ends with 1 where one case has two verdicts."""
    selection = require_backend(config)

    from opsocket_conformance.cases import cases_of
    from opsocket_conformance.isolation import Pool, Question
    from opsocket_conformance.report import terminal
    from opsocket_conformance.verdicts import Result

    questions = [Question(case, seed) for case in cases_of(tier) if text in case.id for seed in range(seeds)]
    verdicts: defaultdict[str, dict[int, str]] = defaultdict(dict)
    pool = Pool(config.override("argument", {"backend": str(selection.device)}), jobs, limit)
    with terminal.progress(len(questions), sys.stderr.isatty()) as advance:

        def keep(question: Question, result: Result) -> None:
            verdicts[question.case.id][question.seed] = result.verdict.value
            advance(result)

        pool.run(questions, keep)
    unstable = {case: by_seed for case, by_seed in verdicts.items() if len(set(by_seed.values())) > 1}
    for case, by_seed in unstable.items():
        click.echo(f"{case}: " + ", ".join(f"seed {seed} {verdict}" for seed, verdict in sorted(by_seed.items())))
    counts: defaultdict[str, int] = defaultdict(int)
    for by_seed in verdicts.values():
        for verdict in by_seed.values():
            counts[verdict] += 1
    told = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    click.echo(f"{len(verdicts)} cases under {seeds} seeds: {told}; {len(unstable)} with more than one verdict")
    if unstable or not verdicts:
        ctx.exit(FAILED)
