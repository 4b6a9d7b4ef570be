"""Why a green report may be believed: what matched filters saw, what ground was covered, which faults are caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opsocket_conformance.report.html import signs
from opsocket_conformance.report.html.markup import Content, Markup, code, details, ids, note, section, table, tag
from opsocket_conformance.report.html.ratios import gauge
from opsocket_conformance.report.text import clipped
from opsocket_conformance.verdicts import Filtered

_SHOWN: Final[Mapping[str, Callable[[str], Markup]]] = {
    "killed": signs.good,
    "weak": signs.partly,
    "survived": signs.bad,
    "not run": signs.neither,
}
_MOST_SHOWN = 2000


def filters(report: Mapping[str, Any]) -> Markup:
    """What is left of each small systematic fault."""
    found = report["filters"]
    if not found:
        return section("filters", "Matched filters", note("No case of this run carries one."))
    rows = [
        (
            tag("strong", knob),
            entry["credited"],
            entry["blind"],
            f"{entry['largest_t']:.2g}" if entry["credited"] else "",
            gauge(entry["largest_t"], 0.3, Filtered.FAIL_ABOVE)
            if entry["credited"]
            else signs.bad("nothing could be seen"),
        )
        for knob, entry in found.items()
    ]
    return section(
        "filters",
        "Matched filters",
        note(
            "A fault as small as a scale 1 % off hides inside any bound on single elements. A matched filter estimates "
            "how much of exactly that fault is in a result: t = 0 none, t = 1 all of it; beyond ±0.25 the case fails. "
            "Only cases in which a correct result can't push t by more than 0.1 are credited; the others are blind to "
            "that fault."
        ),
        table(
            "Small systematic faults that were looked for",
            ("fault looked for", "credited cases", "blind cases", "largest |t|", "against the limit of 0.25"),
            rows,
            numeric=(1, 2, 3),
        ),
    )


def coverage(report: Mapping[str, Any]) -> Markup:
    """Which knob values of attention ran together."""
    covered = report["coverage"]
    kinds = [("pairs of knob values", covered["pairs"], covered["of"])]
    if "triples" in covered:
        kinds.append(("triples of knob values", covered["triples"], covered["of_triples"]))
    for name, of in (("pairs", "of"), ("triples", "of_triples")):
        if f"credited_{name}" in covered:
            kinds.append((f"{name} that a matched filter could see", covered[f"credited_{name}"], covered[of]))
    rows = [
        (
            tag("strong", kind),
            [tag("strong", have), " of ", total],
            f"{1000 * have // total / 10} %" if total else "",
            gauge(min(have, total), total or 1),
        )
        for kind, have, total in kinds
    ]
    return section(
        "coverage",
        "Coverage",
        note("Knob values that ran together in a case that passed or failed, of all that the interface defines."),
        table("Combinations of attention's knobs that ran", ("what", "ran", "share", ""), rows),
    )


def kill_matrix(report: Mapping[str, Any]) -> Markup:
    """The faults that were put into a correct backend, and what the suite made of them; nothing where none were."""
    faults: Sequence[Mapping[str, Any]] = report.get("power", ())
    if not faults:
        return Markup("")
    number = {verdict: sum(fault["verdict"] == verdict for fault in faults) for verdict in _SHOWN}
    others = ", ".join(f"{n} {verdict}" for verdict, n in number.items() if n and verdict != "killed")
    return section(
        "power",
        "Power of the suite",
        note(
            "Faults put one at a time into a correct backend. A case kills a fault if it fails with it and not "
            "without; three kills by different configurations count, one or two are weak. This measures the suite and "
            "not the backend."
        ),
        tag(
            "p",
            tag("strong", f"{number['killed']} of {len(faults)} faults killed"),
            f" ({1000 * number['killed'] // len(faults) / 10} %)",
            f"; {others}." if others else ".",
        ),
        _survivors([fault for fault in faults if fault["verdict"] != "killed"]),
        _grid(faults),
        details(f"All {len(faults)} faults", _list(faults)),
    )


def _survivors(faults: Sequence[Mapping[str, Any]]) -> Content:
    if not faults:
        return tag("p", signs.good("no fault survived"))
    rows = [
        (
            _name(fault),
            fault["category"],
            code(fault["operator"]),
            fault["ran"],
            _SHOWN[fault["verdict"]](_words(fault)),
        )
        for fault in faults
    ]
    columns = ("fault", "category", "operator", "cases run", "verdict")
    return table("Faults that were not killed", columns, rows, numeric=(3,))


def _name(fault: Mapping[str, Any]) -> Content:
    return [tag("strong", fault["fault"]), tag("div", clipped(fault["wrong"], 300), class_="muted")]


def _words(fault: Mapping[str, Any]) -> str:
    return f"{fault['verdict']}, {len(fault['kills'])}" if fault["kills"] else fault["verdict"]


def _grid(faults: Sequence[Mapping[str, Any]]) -> Markup:
    """Killed of all, by operator and category."""
    operators, categories = (sorted({fault[key] for fault in faults}) for key in ("operator", "category"))
    cells: dict[tuple[str, str], list[bool]] = {}
    for fault in faults:
        cells.setdefault((fault["operator"], fault["category"]), []).append(fault["verdict"] == "killed")
    rows = [(code(o), *(_share(cells.get((o, c), [])) for c in categories)) for o in operators]
    return table("Kill matrix: faults killed, by operator and category", ("operator", *categories), rows)


def _share(kills: Sequence[bool]) -> Markup:
    if not kills:
        return tag("span", "·", class_="muted", aria_label="no fault", role="img")
    words = f"{sum(kills)}/{len(kills)}"
    return signs.good(words) if all(kills) else signs.bad(words)


def _list(faults: Sequence[Mapping[str, Any]]) -> Content:
    rows = [
        (
            _name(fault),
            fault["category"],
            code(fault["operator"]),
            _SHOWN[fault["verdict"]](_words(fault)),
            fault["ran"],
            ids(fault["kills"], 2) if fault["kills"] else "",
        )
        for fault in faults[:_MOST_SHOWN]
    ]
    columns = ("fault", "category", "operator", "verdict", "cases run", "found by")
    return table("Every fault", columns, rows, numeric=(4,))
