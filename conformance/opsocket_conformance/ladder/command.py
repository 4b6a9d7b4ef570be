"""`opsocket verify`: a backend's kernels seen as far as it goes without their chip, or on it where one is here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from opsocket.cli.common import FAILED, UNAVAILABLE, backend_options, fail

if TYPE_CHECKING:
    from opsocket.operators import Artifact
    from opsocket.runtime import RuntimeConfig
    from opsocket_conformance.case import Tier

_FILE = click.File("w", encoding="utf-8")


@click.command()
@backend_options
@click.option("--arch", "arch_names", metavar="A,B", default="", help="Only these architectures (default: all).")
@click.option(
    "--profile", "profiles", metavar="A,B", default="", help="Only these profiles, and all of them are wanted."
)
@click.option("--tier", type=click.Choice(["smoke", "default", "full"]), default="smoke", show_default=True)
@click.option("--case", "case_ids", metavar="ID", multiple=True, help="Exactly this case; repeatable.")
@click.option("--filter", "text", metavar="TEXT", default="", help="Only cases whose id contains TEXT.")
@click.option("--shard", metavar="I/N", default="", help="Only the I-th of N parts of the cases.")
@click.option(
    "--variants", type=click.IntRange(1), metavar="N", help="Make artifacts of N launches of each kernel only."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Other random numbers for every case.")
@click.option("--limit", type=float, default=60.0, show_default=True, help="Seconds for a case on a device.")
@click.option("--jobs", "-j", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--exclude", metavar="FILE", type=click.Path(), help="YAML list of {case, reason, expires}.")
@click.option(
    "--resume", metavar="FILE", type=click.Path(), help="Keep results there as they come, and go on from those there."
)
@click.option("--json", "json_file", type=_FILE, help="Write the report as JSON (- is stdout).")
@click.option("--junit", "junit_file", type=_FILE, help="Write the report as JUnit XML.")
@click.option("--markdown", "markdown_file", type=_FILE, help="Write the report as Markdown.")
@click.option("--html", "html_file", type=_FILE, help="Write the report as one HTML page.")
@click.option("--badge", "badge_file", type=_FILE, help="Write an SVG badge.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, and no report on the screen.")
@click.pass_context
def command(
    ctx: click.Context,
    config: RuntimeConfig,
    arch_names: str,
    profiles: str,
    tier: Tier,
    case_ids: tuple[str, ...],
    text: str,
    shard: str,
    variants: int | None,
    seed: int,
    limit: float,
    jobs: int,
    exclude: str | None,
    resume: str | None,
    json_file: IO[str] | None,
    junit_file: IO[str] | None,
    markdown_file: IO[str] | None,
    html_file: IO[str] | None,
    badge_file: IO[str] | None,
    quiet: bool,
) -> None:
    """Prove a backend's kernels as far as it goes here, and say how far.

    The cases of `opsocket conformance` run on a stand-in for the chip; what they launched is compiled for every
    architecture, and looked at; what is wrong on purpose has to be refused. Where a device of an architecture asked for
    is here, the cases run on it. Ends with 0 where everything is right, with 1 where not.
    """
    from opsocket.runtime.select import validated_backend

    backend = validated_backend(config)
    ladder = backend.ladder()
    if ladder is None:
        fail(f"{backend.info.name} brings no ladder: `opsocket conformance` asks its devices", UNAVAILABLE)

    from opsocket_conformance.exclusions import load_exclusions
    from opsocket_conformance.isolation import run_isolated
    from opsocket_conformance.journal import Journal, what_results_are_of
    from opsocket_conformance.ladder import section
    from opsocket_conformance.ladder.climb import SLOWER, climb, elsewhere, ground, part_of
    from opsocket_conformance.planned import parse_shard, plan_run, why_red
    from opsocket_conformance.profiles import PROFILES, find_profiles, hold
    from opsocket_conformance.report import badge, data, html, junit, markdown, terminal

    place = ground(backend, ladder, [name for name in arch_names.split(",") if name])
    wanted = find_profiles([name for name in profiles.split(",") if name])
    exclusions = load_exclusions(exclude) if exclude else ()
    limit_s = limit * SLOWER if place.device.emulated else limit
    planned = plan_run(tier, wanted, case_ids, text, parse_shard(shard))
    chosen = config.override("argument", {"backend": str(place.device)})
    journal = Journal(resume, what_results_are_of(backend, ladder, config, seed)) if resume else None
    shown = not quiet and sys.stderr.isatty()
    started = time.perf_counter()

    def say(line: str) -> None:
        if not (quiet or shown):
            click.echo(line, err=True)

    say(f"{len(planned.cases)} cases on {place.device} ({place.device.arch}, {place.device.numerics})")
    with terminal.progress(len(planned.cases), shown) as advance:
        results = run_isolated(
            planned.cases,
            chosen,
            jobs=jobs,
            seed=seed,
            limit_s=limit_s,
            exclusions=exclusions,
            on_result=advance,
            environment=place.environment,
            record="run",
            kept=part_of(journal, place.device),
        )
    if len(place.arches) > 1:
        say(f"rehearsed for {', '.join(arch for arch in place.arches if arch != place.device.arch)}")
    with terminal.progress(len(planned.cases) * (len(place.arches) - 1), shown and len(place.arches) > 1) as advance:
        others = elsewhere(
            backend,
            place,
            config,
            planned.cases,
            results,
            jobs=jobs,
            seed=seed,
            limit_s=limit_s,
            exclusions=exclusions,
            on_result=advance,
            journal=journal,
        )
    if journal is not None:
        journal.close()
    say(f"artifacts for {', '.join(place.arches)}; controls")
    with _artifacts_shown(shown) as on_artifact:
        climbed = climb(
            backend,
            place,
            chosen,
            results,
            others,
            jobs=jobs,
            seed=seed,
            limit_s=limit_s,
            variants=variants,
            on_artifact=on_artifact,
        )
    content = section.section(climbed, results)
    by_id = {result.case: result for result in results}
    held = [hold(profile, planned.pool, by_id) for profile in wanted or PROFILES]
    reason = why_red(results, held, asked=bool(wanted), whole=not (case_ids or text or shard))
    reason = reason or section.failure(content)
    asked = data.Run(
        str(place.device),
        dict(config.operators),
        tier,
        seed,
        tuple(profile.name for profile in wanted),
        shard,
        text,
        tuple(dict.fromkeys(case_ids)),
        jobs,
        0 if journal is None else journal.resumed,
    )
    took = time.perf_counter() - started
    report = data.build(asked, backend.info, place.device, planned.cases, results, held, reason, took, ladder=content)
    writers: Sequence[tuple[IO[str] | None, Callable[[dict[str, Any]], str]]] = (
        (json_file, lambda report: json.dumps(report, indent=1) + "\n"),
        (junit_file, junit.junit),
        (markdown_file, markdown.markdown),
        (html_file, html.html),
        (badge_file, badge.badge),
    )
    for file, write in writers:
        if file is not None:
            file.write(write(report))
    if not quiet:
        to_stderr = any(file is sys.stdout for file, _ in writers)
        for line in terminal.lines(report):
            click.echo(line, err=to_stderr)
    if reason:
        ctx.exit(FAILED)


@contextmanager
def _artifacts_shown(shown: bool) -> Iterator[Callable[[Artifact, int], None]]:
    """A second bar, over artifacts; gives the function that is told of each."""
    if not shown:
        yield lambda artifact, count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, wrong = bar.add_task("", total=None), 0

        def advance(artifact: Artifact, count: int) -> None:
            nonlocal wrong
            wrong += bool(artifact.problems)
            said = f"{wrong} refused  " if wrong else ""
            bar.update(task, advance=1, total=count, description=f"{said}{artifact.kernel} for {artifact.arch}")

        yield advance
