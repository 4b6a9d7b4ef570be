"""`opsocket conformance`: is a backend right, and which profiles does it hold."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

import click

from opsocket.cli.common import FAILED, USAGE, backend_options, fail, open_session, require_backend

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig
    from opsocket_conformance.case import Case
    from opsocket_conformance.profiles import Held, Profile
    from opsocket_conformance.verdicts import Result

_FILE = click.File("w", encoding="utf-8")


class _Subcommands(click.Group):
    """Subcommands by name, each imported when it is asked for."""

    modules: Final = {"compare": "compare", "fuzz": "fuzz", "stability": "stability"}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.modules:
            return None
        module = importlib.import_module(f"{__name__}.{self.modules[name]}")
        found: click.Command = module.command
        return found


@click.group(cls=_Subcommands, invoke_without_command=True)
@backend_options
@click.option(
    "--profile", "profiles", metavar="A,B", default="", help="Only these profiles, and all of them are wanted."
)
@click.option("--tier", type=click.Choice(["smoke", "default", "full"]), default="default", show_default=True)
@click.option("--case", "case_ids", metavar="ID", multiple=True, help="Exactly this case, in tier or not; repeatable.")
@click.option("--filter", "text", metavar="TEXT", default="", help="Only cases whose id contains TEXT.")
@click.option("--shard", metavar="I/N", default="", help="Only the I-th of N parts of the cases.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other random numbers for every case.")
@click.option("--limit", type=float, default=60.0, show_default=True, help="Seconds that one case may take.")
@click.option("--jobs", "-j", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--in-process", is_flag=True, help="No worker process: for a debugger; a crash ends the run.")
@click.option("--exclude", metavar="FILE", type=click.Path(), help="YAML list of {case, reason, expires}.")
@click.option("--list", "list_only", is_flag=True, help="Print the ids of the cases, and run none.")
@click.option("--json", "json_file", type=_FILE, help="Write the report as JSON (- is stdout).")
@click.option("--junit", "junit_file", type=_FILE, help="Write the report as JUnit XML.")
@click.option("--markdown", "markdown_file", type=_FILE, help="Write the report as Markdown.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, and no report on the screen.")
@click.pass_context
def command(
    ctx: click.Context,
    config: RuntimeConfig,
    profiles: str,
    tier: str,
    case_ids: tuple[str, ...],
    text: str,
    shard: str,
    seed: int,
    limit: float,
    jobs: int,
    in_process: bool,
    exclude: str | None,
    list_only: bool,
    json_file: IO[str] | None,
    junit_file: IO[str] | None,
    markdown_file: IO[str] | None,
    quiet: bool,
) -> None:
    """Prove a backend right: every operator against a float64 oracle, with derived tolerances.

    Ends with 0 where everything that ran is right and the profiles asked for are held, with 1 where not.
    """
    if ctx.invoked_subcommand is not None:
        return
    part = _shard(shard)
    if list_only:
        for case in _planned(tier, _wanted(profiles), case_ids, text, part)[0]:
            click.echo(case.id)
        return
    selection = require_backend(config)
    wanted = _wanted(profiles)
    cases, pool = _planned(tier, wanted, case_ids, text, part)

    from opsocket_conformance.exclusions import load_exclusions
    from opsocket_conformance.isolation import run_isolated
    from opsocket_conformance.profiles import PROFILES, hold
    from opsocket_conformance.report import data, junit, markdown, terminal
    from opsocket_conformance.runner import run

    exclusions = load_exclusions(exclude) if exclude else ()
    started = time.perf_counter()
    with terminal.progress(len(cases), not quiet and sys.stderr.isatty()) as advance:
        if in_process:
            with open_session(config, selection) as session:
                results = run(cases, session, seed=seed, limit_s=limit, exclusions=exclusions, on_result=advance)
        else:
            chosen = config.override("argument", {"backend": str(selection.device)})
            results = run_isolated(
                cases, chosen, jobs=jobs, seed=seed, limit_s=limit, exclusions=exclusions, on_result=advance
            )
    by_id = {result.case: result for result in results}
    held = [hold(profile, pool, by_id) for profile in wanted or PROFILES]
    reason = _failure(results, held, asked=bool(wanted), whole=not (case_ids or text or shard))
    asked = data.Run(
        str(selection.device) if config.backend == "auto" else config.backend,
        dict(config.operators),
        tier,
        seed,
        tuple(p.name for p in wanted),
        shard,
        text,
    )
    took = time.perf_counter() - started
    report = data.build(asked, selection.backend.info, selection.device, cases, results, held, reason, took)
    writers: Sequence[tuple[IO[str] | None, Callable[[], str]]] = (
        (json_file, lambda: json.dumps(report, indent=1) + "\n"),
        (junit_file, lambda: junit.junit(report)),
        (markdown_file, lambda: markdown.markdown(report)),
    )
    for file, write in writers:
        if file is not None:
            file.write(write())
    if not quiet:
        to_stderr = any(file is sys.stdout for file, _ in writers)
        for line in terminal.lines(report):
            click.echo(line, err=to_stderr)
    if reason:
        ctx.exit(FAILED)


def _wanted(profiles: str) -> tuple[Profile, ...]:
    from opsocket_conformance.profiles import find_profiles

    return find_profiles([name for name in profiles.split(",") if name])


def _shard(text: str) -> tuple[int, int]:
    """(number, count) of I/N."""
    if not text:
        return 1, 1
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        fail(f"--shard: wanted I/N with 1 <= I <= N, got {text!r}", USAGE)
    return int(number), int(count)


def _planned(
    tier: Any, wanted: Sequence[Profile], case_ids: Sequence[str], text: str, part: tuple[int, int]
) -> tuple[list[Case], list[Case]]:
    """The cases of this run, and all those of its tier and profiles, by which a profile is complete or not."""
    from opsocket_conformance.case import parse_case, shard
    from opsocket_conformance.cases import cases_of
    from opsocket_conformance.checks import CHECKS

    pool = list(cases_of(tier))
    if wanted:
        pool = [case for case in pool if any(profile.includes(case.check.features()) for profile in wanted)]
    if case_ids:
        return [parse_case(id, CHECKS) for id in dict.fromkeys(case_ids)], pool
    return shard([case for case in pool if text in case.id], *part), pool


def _failure(results: Sequence[Result], held: Sequence[Held], *, asked: bool, whole: bool) -> str:
    """Why the run is red, "" for green. whole: nothing was left out by hand, so that profiles can be demanded."""
    from opsocket_conformance.verdicts import count, failure_of

    wrong = ("not held", "incomplete") if whole else ("not held",)
    missing = [h.profile for h in held if h.verdict in wrong] if asked else []
    if whole and not asked and not any(h.by for h in held):
        missing = ["any profile"]
    return failure_of(count(results), missing)
