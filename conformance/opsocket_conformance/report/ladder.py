"""The rows in which a ladder's section is told: on screens, in Markdown, in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

NUMERICS_COLUMNS: Final = ("arch", "cases run for it", "launch the same", "as for one before", "wrong")
KERNEL_COLUMNS: Final = ("kernel", "arch", "variants", "refused")
OPERATOR_COLUMNS: Final = ("operator", "provider", "launches", "artifact", "why")
CONTROL_COLUMNS: Final = ("wrong on purpose", "rung", "arch", "refused", "what was said")
BINDING_COLUMNS: Final = ("call", "provider", "library", "binds")

_WORDS: Final = {
    "compiled": ("launches", "kernels", "compiled"),
    "schema": ("calls", "vendor's operators", "held against the vendor's schema and checks"),
}
"""By the kind of artifacts: what they are made of, what those belong to, and what was done."""


def done(ladder: Mapping[str, Any]) -> str:
    """What was done with launches or calls, such as "compiled"."""
    return " or ".join(_WORDS[kind][2] for kind in _kinds(ladder))


def _kinds(ladder: Mapping[str, Any]) -> list[str]:
    """Of the artifacts that were made, the ladder's own first."""
    made = {ladder["launches"][entry["launch"]]["kind"] for entry in ladder["artifacts"]}
    return sorted(made, key=lambda kind: kind != ladder["kind"]) or [ladder["kind"]]


def fact_names(ladder: Mapping[str, Any]) -> list[str]:
    """What the artifacts say of themselves, in their order."""
    return list(dict.fromkeys(name for entry in ladder["artifacts"] for name in entry["facts"]))


def kernel_rows(ladder: Mapping[str, Any], by_arch: bool = True) -> list[tuple[str, ...]]:
    """A row for each kernel and architecture, or for each kernel: how many variants, how many of them refused, and each
    fact as a range over them."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in ladder["artifacts"]:
        groups.setdefault((entry["kernel"], entry["arch"] if by_arch else ""), []).append(entry)
    rows = []
    for (kernel, arch), mine in sorted(groups.items(), key=lambda group: group[0][0]):
        refused = sum(bool(entry["problems"]) for entry in mine)
        shown = [_over(entry["facts"].get(name) for entry in mine) for name in fact_names(ladder)]
        arches = arch or f"{len({entry['arch'] for entry in mine})}"
        rows.append((kernel, arches, str(len({entry["launch"] for entry in mine})), str(refused or ""), *shown))
    return rows


def _over(values: Iterable[Any]) -> str:
    """One value, least and most of several, or all the names that occur."""
    found = [value for value in values if value is not None]
    if all(isinstance(value, (int, float)) for value in found):
        numbers = sorted(set(found))
        ends = [f"{number:.3g}" if isinstance(number, float) else str(number) for number in numbers]
        return "" if not ends else ends[0] if ends[0] == ends[-1] else f"{ends[0]}-{ends[-1]}"
    names: set[str] = set()
    for value in found:
        names.update(value if isinstance(value, list) else [str(value)])
    return ", ".join(sorted(names))


def numerics_rows(ladder: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Where the numbers of each architecture come from."""
    rows: list[tuple[str, ...]] = [(ladder["stand_in"] or "the device", "all", "", "", "")]
    for other in ladder["numerics"]:
        counts = ", ".join(f"{number} {verdict}" for verdict, number in other["counts"].items() if number)
        alike = other.get("alike", 0)
        wrong = "; ".join(f"{entry['verdict']} {entry['case']}" for entry in other["wrong"][:3])
        rows.append((other["arch"], counts or "none", str(other["same"]), str(alike or ""), wrong))
    return rows


def operator_rows(ladder: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What is proven of each operator's artifacts."""
    return [
        (entry["operator"], entry["provider"], str(entry["launches"] or ""), entry["artifact"], entry["why"])
        for entry in ladder["operators"]
    ]


def control_rows(ladder: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Each control; one that passed comes first."""
    ordered = sorted(ladder["controls"], key=lambda control: bool(control["refused"]))
    return [(c["name"], c["rung"], c["arch"], "yes" if c["refused"] else "NO", c["said"]) for c in ordered]


def binding_rows(ladder: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Each call of a vendor's library."""
    return [(b["target"], b["provider"], b["library"] or "not here", b["problem"] or "yes") for b in ladder["bindings"]]


def problems(ladder: Mapping[str, Any]) -> Iterator[str]:
    """Every artifact that is refused, in a line each."""
    for entry in ladder["artifacts"]:
        if entry["problems"]:
            yield f"{entry['arch']}: {entry['variant']}: {'; '.join(entry['problems'])}"


def accepted(ladder: Mapping[str, Any]) -> Iterator[str]:
    """What would be refused but for a written reason."""
    for entry in ladder["artifacts"]:
        for text in entry["accepted"]:
            yield f"{entry['arch']}: {entry['variant']}: {text}"


def words(ladder: Mapping[str, Any]) -> str:
    """What was climbed, in one sentence."""
    if not ladder["architectures"]:
        return "What ran on the device proves itself, and nothing was made for another architecture" + _bound(ladder)
    controls = ladder["controls"]
    refused = sum(control["refused"] for control in controls)
    made, wrong = len(ladder["artifacts"]), sum(bool(entry["problems"]) for entry in ladder["artifacts"])
    return (
        f"{', '.join(_made(ladder, kind) for kind in _kinds(ladder))} for "
        f"{len(ladder['architectures'])} architectures ({made} artifacts, {wrong} refused); "
        f"{refused} of {len(controls)} controls refused" + _bound(ladder)
    )


def _made(ladder: Mapping[str, Any], kind: str) -> str:
    """How many launches of how many kernels have artifacts of a kind."""
    every = sum(launch["kind"] == kind for launch in ladder["launches"])
    mine = [entry for entry in ladder["artifacts"] if ladder["launches"][entry["launch"]]["kind"] == kind]
    count = len({entry["launch"] for entry in mine})
    launches, kernels, was_done = _WORDS[kind]
    of = f"{count} of {every}" if count < every else str(count)
    return f"{of} {launches} of {len({entry['kernel'] for entry in mine})} {kernels} {was_done}"


def _bound(ladder: Mapping[str, Any]) -> str:
    calls = ladder["bindings"]
    if not calls:
        return ""
    bound = sum(bool(call["library"]) and not call["problem"] for call in calls)
    absent = sum(not call["library"] for call in calls)
    return f"; {bound} of {len(calls)} calls of vendors' libraries bound, {absent} whose library is not here"


def share_proven(ladder: Mapping[str, Any]) -> str:
    """How many operators have artifacts that are right, for a badge."""
    by_operator: dict[str, list[bool]] = {}
    for entry in ladder["operators"]:
        by_operator.setdefault(entry["operator"], []).append(entry["artifact"] != "none")
    proven = sum(all(each) for each in by_operator.values())
    return f"{proven} of {len(by_operator)} operators {ladder['kind']}"
