"""`opsocket conformance`: is a backend right, and which profiles does it hold."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Final

import click

from opsocket.cli.common import FAILED, backend_options, open_session, require_backend

if TYPE_CHECKING:
    from opsocket.operators import DeviceInfo
    from opsocket.runtime import RuntimeConfig
    from opsocket_conformance.case import Case, Tier
    from opsocket_conformance.power.fault import Fault
    from opsocket_conformance.power.self_test import Outcome
    from opsocket_conformance.profiles import Profile
    from opsocket_conformance.report.data import Run
    from opsocket_conformance.verdicts import Result

_FILE = click.File("w", encoding="utf-8")


class _Subcommands(click.Group):
    """Subcommands by name, each imported when it is asked for."""

    modules: Final = ("compare", "fuzz", "oracles", "stability", "verify")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.modules:
            return None
        module = importlib.import_module(f"{__name__}.{name}")
        found: click.Command = module.command
        return found


@click.group(cls=_Subcommands, invoke_without_command=True)
@backend_options
@click.option(
    "--profile", "profiles", metavar="A,B", default="", help="Only these profiles, and all of them are wanted."
)
@click.option("--tier", type=click.Choice(["smoke", "default", "full", "large"]), default="default", show_default=True)
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
@click.option("--html", "html_file", type=_FILE, help="Write the report as one HTML page.")
@click.option("--badge", "badge_file", type=_FILE, help="Write an SVG badge.")
@click.option("--speed", is_flag=True, help="Then time plain cases that passed, warm and cold: no benchmark.")
@click.option("--speed-filter", metavar="TEXT", default="", help="With --speed: time cases whose id has TEXT as well.")
@click.option("--self-test", is_flag=True, help="Test the suite: does it find the faults whose name has --filter?")
@click.option("--category", "categories", metavar="A,B", default="", help="With --self-test: only faults of these.")
@click.option("--kills", type=click.IntRange(3), help="With --self-test: a fault is done with at so many. [default: 5]")
@click.option("--first", metavar="FILE", type=click.Path(), help="With --self-test: try what found it in this --json.")
@click.option("--power", metavar="FILE", type=click.Path(), help="Put a self-test's --json into the report.")
@click.option("--reproduce", "reproduce_file", type=_FILE, help="Write a script that runs the first failure alone.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, and no report on the screen.")
@click.pass_context
def command(
    ctx: click.Context,
    config: RuntimeConfig,
    profiles: str,
    tier: Tier,
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
    html_file: IO[str] | None,
    badge_file: IO[str] | None,
    speed: bool,
    speed_filter: str,
    self_test: bool,
    categories: str,
    kills: int | None,
    first: str | None,
    power: str | None,
    reproduce_file: IO[str] | None,
    quiet: bool,
) -> None:
    """Prove a backend right: every operator against a float64 oracle, with derived tolerances.

    Ends with 0 where everything that ran is right and the profiles asked for are held, with 1 where not.
    """
    if ctx.invoked_subcommand is not None:
        return

    from opsocket_conformance.planned import parse_shard, plan_run, why_red

    part = parse_shard(shard)
    if list_only:
        for case in plan_run(tier, _wanted(profiles), case_ids, text, part).cases:
            click.echo(case.id)
        return
    selection = require_backend(config)
    chosen = config.override("argument", {"backend": str(selection.device)})
    wanted = _wanted(profiles)
    if self_test:
        from opsocket_conformance.cli import self_test as power_test

        suite, started = plan_run(tier, wanted, case_ids, part=part).cases, time.perf_counter()
        outcomes = power_test.self_test(
            suite,
            chosen,
            faults=_faults(text, categories),
            jobs=jobs,
            seed=seed,
            limit_s=limit,
            quiet=quiet,
            enough=kills,
            found=power_test.found_by(first) if first else {},
        )
        took = time.perf_counter() - started
        _told(ctx, outcomes, selection.device, took, json_file, markdown_file)
        return
    planned = plan_run(tier, wanted, case_ids, text, part)
    cases = planned.cases

    from opsocket_conformance.exclusions import load_exclusions
    from opsocket_conformance.isolation import run_isolated
    from opsocket_conformance.profiles import PROFILES, hold
    from opsocket_conformance.report import badge, data, html, junit, markdown, terminal
    from opsocket_conformance.report.power import with_power
    from opsocket_conformance.runner import run

    exclusions = load_exclusions(exclude) if exclude else ()
    started = time.perf_counter()
    with terminal.progress(len(cases), not quiet and sys.stderr.isatty()) as advance:
        if in_process:
            with open_session(config, selection) as session:
                results = run(cases, session, seed=seed, limit_s=limit, exclusions=exclusions, on_result=advance)
        else:
            results = run_isolated(
                cases, chosen, jobs=jobs, seed=seed, limit_s=limit, exclusions=exclusions, on_result=advance
            )
    by_id = {result.case: result for result in results}
    held = [hold(profile, planned.pool, by_id) for profile in wanted or PROFILES]
    reason = why_red(results, held, asked=bool(wanted), whole=not (case_ids or text or shard))
    asked = data.Run(
        str(selection.device) if config.backend == "auto" else config.backend,
        dict(config.operators),
        tier,
        seed,
        tuple(p.name for p in wanted),
        shard,
        text,
        tuple(dict.fromkeys(case_ids)),
        jobs,
    )
    took = time.perf_counter() - started
    report = data.build(asked, selection.backend.info, selection.device, cases, results, held, reason, took)
    if power is not None:
        report = with_power(report, power)
    if speed:
        from opsocket_conformance.speed.run import in_process as on_session
        from opsocket_conformance.speed.run import isolated, with_speed
        from opsocket_conformance.speed.selection import choose

        timed = choose(cases, results, speed_filter)
        if in_process:
            with open_session(config, selection) as session:
                report = with_speed(report, timed, on_session(session), seed, limit)
        else:
            with isolated(chosen) as ask:
                report = with_speed(report, timed, ask, seed, limit)
    writers: Sequence[tuple[IO[str] | None, Callable[[], str]]] = (
        (json_file, lambda: json.dumps(report, indent=1) + "\n"),
        (junit_file, lambda: junit.junit(report)),
        (markdown_file, lambda: markdown.markdown(report)),
        (html_file, lambda: html.html(report)),
        (badge_file, lambda: badge.badge(report)),
        (reproduce_file, lambda: _reproducer(cases, results, asked)),
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


def _faults(text: str, categories: str) -> list[Fault]:
    from opsocket.operators import ContractError
    from opsocket_conformance.power.catalogue import all_faults

    known = {fault.category for fault in all_faults()}
    wanted = {name.strip() for name in categories.split(",") if name.strip()} or known
    if unknown := wanted - known:
        raise ContractError("category", f"some of {sorted(known)}", repr(",".join(sorted(unknown))))
    return [fault for fault in all_faults() if text in fault.name and fault.category in wanted]


def _told(
    ctx: click.Context,
    outcomes: Sequence[Outcome],
    device: DeviceInfo,
    took: float,
    json_file: IO[str] | None,
    markdown_file: IO[str] | None,
) -> None:
    from opsocket_conformance.cli import self_test
    from opsocket_conformance.power.matrix import matrix

    if json_file is not None:
        json_file.write(json.dumps(self_test.to_json(outcomes, took, device), indent=1) + "\n")
    if markdown_file is not None:
        markdown_file.write(matrix(outcomes))
    reason = self_test.failure(outcomes)
    self_test.tell(outcomes, reason)
    if reason:
        ctx.exit(FAILED)


def _reproducer(cases: Sequence[Case], results: Sequence[Result], asked: Run) -> str:
    """A script for the first case that failed, or for the only one there is."""
    from opsocket_conformance.reproducer import reproducer
    from opsocket_conformance.verdicts import Verdict

    wrong = (r.case for r in results if r.verdict in (Verdict.FAIL, Verdict.CRASH))
    first = next(wrong, cases[0].id if len(cases) == 1 else "")
    case = next((case for case in cases if case.id == first), None)
    return "# Nothing failed.\n" if case is None else reproducer(case, asked.backend, asked.seed, asked.pins)


def _wanted(profiles: str) -> tuple[Profile, ...]:
    from opsocket_conformance.profiles import find_profiles

    return find_profiles([name for name in profiles.split(",") if name])
