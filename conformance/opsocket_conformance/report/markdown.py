"""The report as a Markdown page: what to paste into a release note or a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from opsocket_conformance.report import ladder
from opsocket_conformance.report.text import (
    PROFILE_COLUMNS,
    coverage_words,
    evidence_words,
    operator_rows,
    printable,
    profile_rows,
    ratio,
    rerun,
    summary,
)

_OPERATOR_COLUMNS = ("operator", "cases", "pass", "fail", "unsupported", "worst ratio", "provider")
_FILTER_COLUMNS = ("fault looked for", "credited cases", "blind cases", "most of it found")
_MOST_FAILURES = 200


def markdown(report: dict[str, Any]) -> str:
    """Verdict, evidence, coverage, profiles, operators, filters, failures, and where it all comes from."""
    device, suite, backend, run = report["device"], report["suite"], report["backend"], report["run"]
    verdict = "green" if report["verdict"]["green"] else f"red: {report['verdict']['reason']}"
    host = ", ".join(f"{k} {v}" for k, v in report["host"].items())
    lines = [
        f"# opsocket conformance: {_plain(device['id'])}",
        "",
        f"**{_plain(verdict)}**. {_plain(summary(report))}",
        "",
        f"- device: {_plain(device['name'])} ({_plain(device['arch'])})",
        f"- evidence: {evidence_words(report)}",
        f"- coverage: {coverage_words(report)}",
        f"- backend {_plain(backend['name'])} {_plain(backend['version'])}, interface {_plain(backend['interface'])}; "
        f"{_plain(host)}",
        f"- suite {_plain(suite['version'])}, digest `{suite['digest'][:16]}`, tier {run['tier']}, seed {run['seed']}",
        "",
        *_table(PROFILE_COLUMNS, _all_plain(profile_rows(report))),
        "",
        *_table(_OPERATOR_COLUMNS, _all_plain(operator_rows(report))),
    ]
    if report["filters"]:
        lines += ["", *_table(_FILTER_COLUMNS, _all_plain(_filters(report)))]
    lines += _ladder(report)
    failed = [case for case in report["cases"] if case["verdict"] in ("FAIL", "CRASH")]
    if failed:
        rows = [_failure(report, case) for case in failed[:_MOST_FAILURES]]
        lines += ["", *_table(("verdict", "ratio", "again"), rows)]
    if len(failed) > _MOST_FAILURES:
        lines += ["", f"... and {len(failed) - _MOST_FAILURES} more, which the JSON report names."]
    return "\n".join(lines) + "\n"


def _ladder(report: dict[str, Any]) -> list[str]:
    """What is known of the kernels without their chip."""
    content = report.get("ladder")
    if content is None:
        return []
    columns = (*ladder.KERNEL_COLUMNS, *ladder.fact_names(content))
    lines = ["", f"{_plain(ladder.words(content))}.", "", *(f"- {_plain(text)}" for text in content["limits"])]
    lines += ["", *_table(ladder.NUMERICS_COLUMNS, _all_plain(ladder.numerics_rows(content)))]
    lines += ["", *_table(ladder.OPERATOR_COLUMNS, _all_plain(ladder.operator_rows(content)))]
    lines += ["", *_table(columns, _all_plain(ladder.kernel_rows(content)))]
    refused = list(ladder.problems(content))
    lines += ["", *(f"- refused: {_plain(text)}" for text in refused[:_MOST_FAILURES])] if refused else []
    accepted = list(ladder.accepted(content))
    lines += ["", *(f"- accepted: {_plain(text)}" for text in accepted[:_MOST_FAILURES])] if accepted else []
    lines += ["", *_table(ladder.CONTROL_COLUMNS, _all_plain(ladder.control_rows(content)))]
    if content["bindings"]:
        lines += ["", *_table(ladder.BINDING_COLUMNS, _all_plain(ladder.binding_rows(content)))]
    return lines


def _filters(report: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (knob, str(entry["credited"]), str(entry["blind"]), f"{entry['largest_t']:.2g}")
        for knob, entry in report["filters"].items()
    ]


def _failure(report: dict[str, Any], case: dict[str, Any]) -> tuple[str, str, str]:
    return case["verdict"], ratio(case["ratio"]), _code(rerun(report, case["id"]))


def _code(text: str) -> str:
    """A code span whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _plain(text: str) -> str:
    """Text on one line that no Markdown reader takes for markup."""
    escaped = re.sub(r"([\\`*\[\]])", r"\\\1", " ".join(printable(text).split()))
    return html.escape(escaped, quote=False)


def _all_plain(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return [tuple(_plain(cell) for cell in row) for row in rows]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of cells that are Markdown already."""
    return [
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
