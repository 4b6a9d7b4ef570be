"""The report on a screen: progress while cases run, then one line per operator and a verdict per profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opsocket_conformance.report import ladder
from opsocket_conformance.report.text import PROFILE_COLUMNS, operator_rows, printable, profile_rows, rerun, summary
from opsocket_conformance.verdicts import Result, Verdict

_COLUMNS = ("operator", "cases", "pass", "fail", "unsup.", "worst ratio", "provider")
_SPEED_COLUMNS = ("timed", "us cold", "us warm", "KB", "GB/s", "of limit")
_MOST_FAILURES = 20
_MOST_LINES = 12


@contextmanager
def progress(total: int, shown: bool) -> Iterator[Callable[[Result], None]]:
    """A bar on stderr, where it is a terminal; gives the function to call with every result."""
    if not shown:
        yield lambda result: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, failed = bar.add_task("", total=total), 0

        def advance(result: Result) -> None:
            nonlocal failed
            failed += result.verdict in (Verdict.FAIL, Verdict.CRASH)
            bar.update(
                task, advance=1, description=f"{failed} failed  {result.operator}" if failed else result.operator
            )

        yield advance


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people, line by line. What a backend said is shown as text, whatever it does to terminals."""
    yield from map(printable, _lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield from _failures(report)
    yield from _aligned(_COLUMNS, operator_rows(report), right=range(1, 6))
    yield ""
    profiles = profile_rows(report)
    if profiles:
        yield from _aligned(PROFILE_COLUMNS, profiles)
        yield ""
    if report.get("speed"):
        yield from _aligned(_SPEED_COLUMNS, [_speed_row(entry) for entry in report["speed"]], right=range(1, 6))
        limit = report.get("speed_limit")
        if limit is not None and limit["gb_s"] is not None:
            yield f"limit: {limit['gb_s']:.3g} GB/s ({limit['by']}); no benchmark: calls are timed with their overhead"
        yield ""
    yield from _ladder(report)
    device, evidence = report["device"], report["evidence"]
    yield f"{device['id']}: {device['name']}; numerics: {evidence['numerics']}, artifact: {evidence['artifact']}"
    resumed = report["run"].get("resumed", 0)
    known = f"; {resumed} of the results are of a run before" if resumed else ""
    yield f"{summary(report)}; {report['run']['seconds']:.1f} s{known}"
    yield "green" if report["verdict"]["green"] else f"red: {report['verdict']['reason']}"


def _ladder(report: dict[str, Any]) -> Iterator[str]:
    """What was climbed: a line for each kernel; and all that is refused, or passed and had to be refused."""
    content = report.get("ladder")
    if content is None:
        return
    refused = list(ladder.problems(content))
    yield from refused[:_MOST_FAILURES]
    if len(refused) > _MOST_FAILURES:
        yield f"... and {len(refused) - _MOST_FAILURES} more; --json FILE has them all"
    if refused:
        yield ""
    kernels = ladder.kernel_rows(content, by_arch=False)
    if kernels:
        columns = ("kernel", "chips", *ladder.KERNEL_COLUMNS[2:], *ladder.fact_names(content))
        yield from _aligned(columns, [[cell[:40] for cell in row] for row in kernels], right=range(1, 4))
        yield ""
    numerics = ladder.numerics_rows(content)
    if len(numerics) > 1:
        yield from _aligned(ladder.NUMERICS_COLUMNS, numerics)
        yield ""
    for name, rung, arch, was_refused, said in ladder.control_rows(content):
        if was_refused != "yes":
            yield f"control passed: {name} ({rung}, {arch}): {said}"
    for operator, provider, _, artifact, why in ladder.operator_rows(content):
        if artifact == "none" and content["architectures"]:
            yield f"artifact none: {operator} by {provider}: {why}"
    yield f"{ladder.words(content)}"
    yield from content["limits"][:1]


def _speed_row(entry: dict[str, Any]) -> tuple[str, ...]:
    share = entry["fraction_of_limit"]
    return (
        entry["case"],
        f"{entry['seconds'] * 1e6:.1f}",
        f"{entry['warm_seconds'] * 1e6:.1f}" if "warm_seconds" in entry else "",
        f"{entry['bytes'] / 1e3:.1f}",
        f"{entry['gb_s']:.3g}",
        "" if share is None else f"{100 * share:.2g} %",
    )


def _failures(report: dict[str, Any]) -> Iterator[str]:
    failed = [case for case in report["cases"] if case["verdict"] in ("FAIL", "CRASH")]
    for case in failed[:_MOST_FAILURES]:
        yield f"{case['verdict']}  {case['id']}"
        said = [line for message in case["messages"] for line in message.splitlines()]
        yield from (f"    {line}" for line in said[-_MOST_LINES:])
        yield f"    again: {rerun(report, case['id'])}"
        yield ""
    if len(failed) > _MOST_FAILURES:
        yield f"... and {len(failed) - _MOST_FAILURES} more; --json FILE has them all"
        yield ""
    yield from _without_result(report)


def _without_result(report: dict[str, Any]) -> Iterator[str]:
    """Why cases did not run; and, where not a single one passed, what the backend said about those that it denied."""
    cases = report["cases"]
    why = Counter((case["verdict"], "; ".join(case["messages"])) for case in cases if case["verdict"] == "NOT_RUN")
    if not any(case["verdict"] == "PASS" for case in cases):
        denied = [case for case in cases if case["verdict"] == "UNSUPPORTED"]
        why.update((case["verdict"], "; ".join(map(_reason, case["reasons"]))) for case in denied)
    for (verdict, told), count in why.most_common(_MOST_FAILURES):
        yield f"{verdict}  {count} cases: {told}"
        yield ""


def _reason(reason: dict[str, Any]) -> str:
    return f"{reason['field']}={reason['got']!r}, wanted {reason['want']}"


def _aligned(columns: tuple[str, ...], rows: list[Any], right: range = range(0)) -> Iterator[str]:
    table = [columns, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
