"""What this report does not show: what was denied, set aside, not reached, or never asked, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from opsocket_conformance.profiles import PROFILES
from opsocket_conformance.report.html import signs
from opsocket_conformance.report.html.markup import Content, Markup, code, details, ids, section, table, tag
from opsocket_conformance.report.text import clipped

_MOST_GROUPS = 300
_LONGEST_VALUE = 200
_TIERS: Final = {
    "smoke": "the smallest tier: most cases are in the larger ones",
    "default": "the full tier has more",
    "full": "the large tier also has what takes gigabytes",
}


def gaps(report: Mapping[str, Any]) -> Markup:
    """Denied, excluded and unreached cases by reason, and what the run left out by itself."""
    cases = report["cases"]
    parts = [
        _denied([case for case in cases if case["verdict"] == "UNSUPPORTED"]),
        _grouped("Excluded", [case for case in cases if case["verdict"] == "EXCLUDED"], "reason, and until when"),
        _grouped("Not run", [case for case in cases if case["verdict"] == "NOT_RUN"], "reason"),
        tag("h3", "Left out of this run"),
        tag("ul", [tag("li", words) for words in _left_out(report)]),
    ]
    return section("gaps", "What was not run, and why", parts)


def _denied(cases: Sequence[Mapping[str, Any]]) -> Content:
    if not cases:
        return [tag("h3", "Unsupported"), tag("p", signs.good("nothing that was asked for was denied"))]
    probes = [case for case in cases if not _profiles(case)]
    touched = sorted({name for case in cases for name in _profiles(case)})
    words: list[Content] = []
    if probes:
        words.append(
            f"{len(probes)} are probes outside every profile, of which nothing is expected but a consistent answer. "
        )
    if touched:
        words.append([f"{len(cases) - len(probes)} lie in profiles: ", tag("strong", ", ".join(touched)), "."])
    rows = [
        (code(field), wanted, f"{got}", len(members), ids([case["id"] for case in members]))
        for (field, got, wanted), members in _groups(cases, _reason)
    ]
    columns = ("what stood in the way", "wanted", "got", "cases", "for example")
    return [
        tag("h3", f"Unsupported: {len(cases)}"),
        tag("p", words),
        table("Denied cases by the reason that the backend gave", columns, rows, numeric=(3,)),
    ]


def _reason(case: Mapping[str, Any]) -> tuple[str, str, str]:
    if not case["reasons"]:
        return "no reason given", "", ""
    first = case["reasons"][0]
    return first["field"], _value(first["got"]), _value(first["want"])


def _value(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return clipped(text, _LONGEST_VALUE)


def _profiles(case: Mapping[str, Any]) -> list[str]:
    return [profile.name for profile in PROFILES if profile.includes(frozenset(case["features"]))]


def _grouped(title: str, cases: Sequence[Mapping[str, Any]], what: str) -> Content:
    if not cases:
        return ""
    rows = [
        (clipped(said, 1000) or "none given", len(members), ids([case["id"] for case in members]))
        for said, members in _groups(cases, lambda case: "\n".join(case["messages"]))
    ]
    head = tag("h3", f"{title}: {len(cases)}")
    return [head, table(f"{title}, by reason", (what, "cases", "for example"), rows, numeric=(1,))]


def _groups(cases: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any]) -> list[tuple[Any, list[Any]]]:
    """Cases by what they have in common, the largest groups first."""
    found: dict[Any, list[Any]] = {}
    for case in cases:
        found.setdefault(key(case), []).append(case)
    return sorted(found.items(), key=lambda group: -len(group[1]))[:_MOST_GROUPS]


def _left_out(report: Mapping[str, Any]) -> Iterator[Content]:
    run = report["run"]
    if run["cases"]:
        yield "Only the cases that were named were run, so that no profile is complete."
    if run["profiles"]:
        yield ["Only cases of these profiles were run: ", tag("strong", ", ".join(run["profiles"])), "."]
    if run["filter"]:
        yield ["Only cases whose id contains ", code(run["filter"]), " were run, so that no profile is complete."]
    if run["shard"]:
        yield f"This is part {run['shard']} of the cases, so that no profile is complete."
    if run["tier"] in _TIERS:
        yield f"Tier {run['tier']}: {_TIERS[run['tier']]}."
    empty = [profile["name"] for profile in report["profiles"] if not any(profile["counts"].values())]
    if empty:
        yield ["No case was run of: ", ", ".join(empty), "."]
    if not report.get("power"):
        yield ["The suite's own power was not measured in this run (", code("--self-test"), ")."]
    if not report.get("speed"):
        yield "Speed was not measured in this run."
    yield [
        "Right answers to these cases are evidence and no proof: what no case asks is not known. ",
        details("What the suite can't see", _BLIND),
    ]


_BLIND: Final = tag(
    "p",
    "The operators are asked one at a time, with the shapes and values that the cases name. Nothing here says anything "
    "of a whole model's output, of hours of load, or of hardware other than the device named above.",
)
