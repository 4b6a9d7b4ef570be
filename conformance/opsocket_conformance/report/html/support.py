"""What the backend can be used for: the profiles it holds, and which operators it has over which types and formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from opsocket_conformance.profiles import PROFILES
from opsocket_conformance.report.html import signs
from opsocket_conformance.report.html.markup import Content, Markup, details, ids, note, section, table, tag
from opsocket_conformance.report.text import choices_by_type

_HELD: Final[Mapping[str, Callable[[str], Markup]]] = {
    "held": signs.good,
    "held with exclusions": signs.partly,
    "incomplete": signs.neither,
    "not held": signs.bad,
}
_KNOWN: Final = ("dtype:", "cache:", "weight:", "op:")


def profiles(report: Mapping[str, Any]) -> Markup:
    """Each profile: its verdict, and the combinations of type and format that hold it."""
    titles = {profile.name: profile.title for profile in PROFILES}
    rows = [
        (
            [tag("strong", profile["name"]), tag("div", titles.get(profile["name"], ""), class_="muted")],
            _HELD[profile["verdict"]](profile["verdict"]),
            _combinations(profile),
            signs.cell(_by_colour(profile["counts"])),
        )
        for profile in report["profiles"]
    ]
    return section(
        "profiles",
        "Profiles",
        note(
            "A profile is held by every combination of type and format of which all cases passed. Nothing that is "
            "unsupported counts."
        ),
        table("Profiles and what holds them", ("profile", "verdict", "held with", "cases"), rows),
    )


def _combinations(profile: Mapping[str, Any]) -> Content:
    if not profile["by"]:
        missing = profile["missing"]
        if not missing:
            return tag("span", "no case was run" if not any(profile["counts"].values()) else "cases were left out")
        return details(f"{_count(len(missing), 'case')} in the way", ids(missing, 8))
    # Types that go with the same formats stand together.
    together: dict[tuple[str, ...], list[str]] = {}
    for dtype, formats in choices_by_type(dict(profile)).items():
        together.setdefault(tuple(formats), []).append(dtype)
    return [
        tag("div", tag("strong", ", ".join(dtypes)))
        if not any(formats)
        else details(
            [tag("strong", ", ".join(dtypes)), f" × {_count(len(formats), 'format')}"],
            tag("p", ", ".join(formats), class_="formats"),
        )
        for formats, dtypes in together.items()
    ]


def matrix(report: Mapping[str, Any]) -> Markup:
    """Operators by type, by cache format and by weight format, and the rest of what a case may need."""
    cases = report["cases"]
    others = sorted({f for case in cases for f in case["features"] if not f.startswith(_KNOWN)})
    rest = [(f, _cell(case["verdict"] for case in cases if f in case["features"])) for f in others]
    grids = [
        _grid("Operators by type", cases, "dtype:", by_operator=True),
        _grid("Weight formats by operator", cases, "weight:"),
        _grid("Cache formats by operator", cases, "cache:"),
    ]
    options = table("What else a case needs", ("needs", "cases"), rest) if rest else ""
    return section(
        "support",
        "Support",
        _legend(),
        tag("div", grids, class_="beside"),
        details("Options, head sizes and block sizes", options) if rest else "",
    )


def _legend() -> Markup:
    parts: list[Content] = ["Numbers are cases: "]
    for style, words in (
        ("pass", "passed, "),
        ("fail", "failed or crashed, "),
        ("unsupported", "unsupported, "),
        ("rest", "excluded or not run, "),
    ):
        parts += [tag("span", signs.SIGN_OF[style], class_=f"v {style}"), f" {words}"]
    return note(parts, "· no case.")


def _grid(caption: str, cases: Sequence[Mapping[str, Any]], prefix: str, *, by_operator: bool = False) -> Content:
    """Counts of verdicts by operator and by the features that start with `prefix`; operators are rows if by_operator,
    and then those cases that need no such feature have a column of their own."""
    verdicts: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        values = [f.removeprefix(prefix) for f in case["features"] if f.startswith(prefix)]
        for value in values or ([""] if by_operator else []):
            verdicts.setdefault((case["operator"], value), []).append(case["verdict"])
    if not verdicts:
        return ""
    operators = sorted({operator for operator, _ in verdicts})
    values = sorted({value for _, value in verdicts}, key=lambda value: (not value, value))
    rows, columns = (operators, values) if by_operator else (values, operators)
    shown = {"": "no type", "same": "as the queries"}
    first = "operator" if by_operator else f"{prefix[:-1]} format"
    return table(
        caption,
        (first, *(shown.get(column, column) for column in columns)),
        [
            (
                tag("code", shown.get(row, row)) if row != "same" else shown[row],
                *(_cell(verdicts.get((row, c) if by_operator else (c, row), ())) for c in columns),
            )
            for row in rows
        ],
    )


def _cell(verdicts: Iterable[str]) -> Markup:
    return signs.cell(signs.tally(verdicts))


def _by_colour(counts: Mapping[str, int]) -> dict[str, int]:
    found = signs.tally(())
    for name, number in counts.items():
        found[signs.SIGNS[name][1]] += number
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
