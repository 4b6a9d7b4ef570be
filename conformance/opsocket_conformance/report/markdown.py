"""The report as a Markdown page: what to paste into a release note or a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opsocket_conformance.report.text import PROFILE_COLUMNS, operator_rows, profile_rows, ratio, summary

_OPERATOR_COLUMNS = ("operator", "cases", "pass", "fail", "unsupported", "worst ratio", "provider")


def markdown(report: dict[str, Any]) -> str:
    """Verdict, profiles, operators, failures, and where it all comes from."""
    device, host, suite = report["device"], report["host"], report["suite"]
    verdict = "green" if report["verdict"]["green"] else f"red: {report['verdict']['reason']}"
    lines = [
        f"# opsocket conformance: {device['id']}",
        "",
        f"**{verdict}**. {summary(report)}",
        "",
        f"- device: {device['name']} ({device['arch']}); numerics: {report['evidence']['numerics']}, "
        f"artifact: {report['evidence']['artifact']}",
        f"- backend {report['backend']['name']} {report['backend']['version']}, interface "
        f"{report['backend']['interface']}; {', '.join(f'{k} {v}' for k, v in host.items())}",
        f"- suite {suite['version']}, digest `{suite['digest'][:16]}`, tier {report['run']['tier']}, "
        f"seed {report['run']['seed']}",
        "",
        *_table(PROFILE_COLUMNS, profile_rows(report)),
        "",
        *_table(_OPERATOR_COLUMNS, operator_rows(report)),
    ]
    failed = [case for case in report["cases"] if case["verdict"] in ("FAIL", "CRASH")]
    if failed:
        lines += ["", *_table(("case", "verdict", "ratio"), [_failure(case) for case in failed])]
    return "\n".join(lines) + "\n"


def _failure(case: dict[str, Any]) -> tuple[str, str, str]:
    return f"`{case['id']}`", case["verdict"], ratio(case["ratio"])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
