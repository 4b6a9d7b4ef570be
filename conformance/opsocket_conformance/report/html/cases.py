"""Every failure with what was found and how to see it again, and every case in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opsocket_conformance.report.html import signs
from opsocket_conformance.report.html.markup import Markup, code, details, note, render, section, tag
from opsocket_conformance.report.text import clipped, ratio, rerun

_MOST_SHOWN: Final = 1000
_OPEN: Final = 3
_ROOM: Final = 400_000
"""Characters that all messages may take together, so that a page on which everything fails still opens."""


def failures(report: Mapping[str, Any]) -> Markup:
    """The cases that came out wrong, each with its messages and the command that runs it again."""
    failed = signs.failed(report)
    if not failed:
        return Markup("")
    room = max(150, min(6000, _ROOM // len(failed)))
    shown = [_failure(report, case, room, open_=index < _OPEN) for index, case in enumerate(failed[:_MOST_SHOWN])]
    more = len(failed) - len(shown)
    return section(
        "failures",
        f"Failures: {len(failed)}",
        shown,
        note(f"and {more} more: see the table of all cases, and put the id in the command above") if more > 0 else "",
    )


def _failure(report: Mapping[str, Any], case: Mapping[str, Any], room: int, *, open_: bool) -> Markup:
    said = "\n".join(case["messages"]) or "No message was left."
    facts = [f"operator {case['operator']}"]
    if case["provider"]:
        facts.append(f"provider {case['provider']} ({case['tier']})")
    if case["ratio"] is not None:
        facts.append(f"ratio {ratio(case['ratio'])} over {case['elements']} elements")
    return details(
        [signs.verdict(case["verdict"]), " ", code(case["id"])],
        tag("p", "; ".join(facts), class_="muted"),
        tag("pre", clipped(said, room)),
        command(rerun(dict(report), case["id"])),
        open_=open_,
    )


def command(text: str) -> Markup:
    """A command that one click selects and, where the browser can, another copies."""
    copy = tag("button", "copy", type="button", class_="copy", hidden=True)
    return tag("div", tag("code", text, class_="command"), copy, class_="run")


def table_of_cases(report: Mapping[str, Any]) -> Markup:
    """All cases in one table, that can be searched and sorted where scripts run, and read where they don't."""
    cases = report["cases"]
    head = [
        tag("th", tag("button", title, type="button", disabled=True), scope="col", class_=style)
        for title, style in (("verdict", "v0"), ("case", "c0"), ("operator", "o0"), ("ratio", "n"), ("ms", "n"))
    ]
    # Thousands of rows: written by hand, each text through `render`.
    rows = Markup("".join(map(_row, cases)))
    whole = tag(
        "table",
        tag("caption", "Every case", class_="hide"),
        tag("thead", tag("tr", head)),
        tag("tbody", rows),
        id="cases-table",
    )
    return section(
        "cases",
        "Cases",
        details(
            f"All {len(cases)} cases",
            _form(report),
            tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label="Every case"),
            open_=False,
        ),
    )


def _form(report: Mapping[str, Any]) -> Markup:
    verdicts = [name for name, number in report["counts"].items() if number]
    operators = sorted({case["operator"] for case in report["cases"]})
    return tag(
        "form",
        tag("label", "id contains ", tag("input", type="search", name="text", autocomplete="off")),
        tag("label", "verdict ", _select("verdict", verdicts)),
        tag("label", "operator ", _select("operator", operators)),
        tag("output", "", id="cases-shown", aria_live="polite"),
        id="cases-form",
        hidden=True,
    )


def _select(name: str, values: list[str]) -> Markup:
    options = [tag("option", "all", value=""), *(tag("option", value, value=value) for value in values)]
    return tag("select", options, name=name)


def _row(case: Mapping[str, Any]) -> str:
    sign, style = signs.SIGNS[case["verdict"]]
    return (
        f'<tr><td class="v {style}">{sign} {case["verdict"]}</td><td><code>{render(case["id"])}</code></td>'
        f"<td>{render(case['operator'])}</td><td>{ratio(case['ratio'])}</td><td>{case['seconds'] * 1e3:.4g}</td></tr>\n"
    )
