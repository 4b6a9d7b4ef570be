"""Without the chip: what was climbed, kernel by kernel, and what it does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opsocket_conformance.report import ladder as rows
from opsocket_conformance.report.html import signs
from opsocket_conformance.report.html.markup import Content, Markup, code, details, note, section, table, tag

_MOST_SHOWN = 2000


def ladder(report: Mapping[str, Any]) -> Markup:
    """The part, and nothing where nothing was climbed."""
    content = report.get("ladder")
    if content is None:
        return Markup("")
    columns = (*rows.KERNEL_COLUMNS, *rows.fact_names(content))
    kernels = [(code(row[0]), *row[1:3], signs.bad(row[3]) if row[3] else "", *row[4:]) for row in _kernels(content)]
    return section(
        "ladder",
        "Without the chip" if content["stand_in"] else "Other architectures",
        tag("p", tag("strong", rows.words(content)), "."),
        _limits(content["limits"]),
        table("Where numbers come from", rows.NUMERICS_COLUMNS, rows.numerics_rows(content), numeric=(2,)),
        table("What is proven of operators' artifacts", rows.OPERATOR_COLUMNS, _operators(content), numeric=(2,)),
        table(f"By architecture, {rows.done(content)}", columns, kernels, numeric=(2, 3)),
        _lines("Refused", list(rows.problems(content)), open_=True),
        _lines("Accepted, with the written reason", list(rows.accepted(content))),
        table("Controls: wrong on purpose", rows.CONTROL_COLUMNS, _controls(content)),
        table("Calls of vendors' libraries", rows.BINDING_COLUMNS, rows.binding_rows(content))
        if content["bindings"]
        else "",
    )


def _kernels(content: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    return rows.kernel_rows(content)[:_MOST_SHOWN]


def _limits(limits: Sequence[str]) -> Content:
    return [note("What none of this shows:"), tag("ul", [tag("li", text) for text in limits])] if limits else ""


def _operators(content: Mapping[str, Any]) -> list[tuple[Content, ...]]:
    sign = {"compiled": signs.good, "schema": signs.good, "none": signs.neither}
    return [
        (code(operator), provider, launches, sign.get(artifact, signs.bad)(artifact), why)
        for operator, provider, launches, artifact, why in rows.operator_rows(content)
    ]


def _controls(content: Mapping[str, Any]) -> list[tuple[Content, ...]]:
    return [
        (tag("strong", name), rung, arch, signs.good("yes") if refused == "yes" else signs.bad("no"), said)
        for name, rung, arch, refused, said in rows.control_rows(content)
    ]


def _lines(title: str, texts: Sequence[str], open_: bool = False) -> Content:
    if not texts:
        return ""
    shown = [tag("li", text) for text in texts[:_MOST_SHOWN]]
    return details(f"{title}: {len(texts)}", tag("ul", shown), open_=open_)
