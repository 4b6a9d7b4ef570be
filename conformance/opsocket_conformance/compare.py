"""What changed between two reports: verdicts, profiles, ratios, filters, coverage, speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

RATIO_GREW, RATIO_MATTERS = 1.5, 0.1
"""A ratio changed if by this factor, and if the larger is above this share of the bound: below lies rounding's luck."""
SPEED_CHANGED: Final = 1.2
_BROKEN = ("FAIL", "CRASH", "NOT_RUN")
_HELD = ("held", "held with exclusions")

Kind = Literal["broken", "lost", "slower", "grew", "verdict", "filter", "shrank", "faster", "mended", "gained", "new"]
ORDER: Final[tuple[Kind, ...]] = (
    "broken", "lost", "slower", "grew", "verdict", "filter", "shrank", "faster", "mended", "gained", "new",
)  # fmt: skip
REGRESSIONS: Final[tuple[Kind, ...]] = ("broken", "lost")


@dataclass(frozen=True)
class Change:
    """One thing that differs. subject: "case", "profile", "filter", "coverage" or "speed"; name: which.

    kind: "broken" (a case that now fails, crashes or does not run), "lost" (a case that passed and is now unsupported,
    excluded or gone; a profile no longer held; a filter that no case is credited with any more; ground no longer
    covered), "slower", "faster", "grew", "shrank" (a ratio), "filter", "verdict", "mended", "gained", "new".
    """

    kind: Kind
    subject: Literal["case", "profile", "filter", "coverage", "speed"]
    name: str
    old: str
    new: str
    factor: float | None = None

    def __str__(self) -> str:
        subject = "" if self.subject == "case" else f"{self.subject} "
        return f"{self.kind:8} {subject}{self.name}: {self.old} -> {self.new}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Everything that changed beyond noise, regressions first."""
    before, after = ({case["id"]: case for case in report["cases"]} for report in (old, new))
    changes = [change for id in sorted(before | after) for change in _case(id, before.get(id), after.get(id))]
    changes += [*_profiles(old, new), *_filters(old, new), *_coverage(old, new), *_speed(old, new)]
    return sorted(changes, key=lambda change: ORDER.index(change.kind))


def is_regression(change: Change, slower: float | None = None) -> bool:
    """Whether a change alone makes the newer report worse. slower: times as long as before that a case may take."""
    if change.kind == "slower":
        return slower is not None and change.factor is not None and change.factor > slower
    return change.kind in REGRESSIONS


def _case(id: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> Iterator[Change]:
    a, b = (case["verdict"] if case else "absent" for case in (old, new))
    if a != b:
        yield Change(_kind(a, b), "case", id, a, b)
    elif old and new and None not in (old["ratio"], new["ratio"]):
        low, high = sorted((old["ratio"], new["ratio"]))
        if high > RATIO_GREW * low and high > RATIO_MATTERS:
            kind: Kind = "grew" if new["ratio"] == high else "shrank"
            yield Change(kind, "case", id, f"{old['ratio']:.3g}", f"{new['ratio']:.3g}")


def _kind(old: str, new: str) -> Kind:
    if new in _BROKEN:
        return "broken"
    if old == "PASS":
        return "lost"
    if old == "absent":
        return "new"
    if new == "PASS":
        return "mended" if old in _BROKEN else "gained"
    return "verdict"


def _profiles(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    before, after = ({p["name"]: p for p in report["profiles"]} for report in (old, new))
    for name in sorted(before | after):
        a, b = (found[name]["verdict"] if name in found else "absent" for found in (before, after))
        if a != b:
            held = a in _HELD, b in _HELD
            kind: Kind = "lost" if held == (True, False) else "gained" if held == (False, True) else "verdict"
            yield Change(kind, "profile", name, a, b)
        elif a in _HELD and (gone := sorted({*before[name]["by"]} - {*after[name]["by"]})):
            yield Change("lost", "profile", name, f"held with {', '.join(gone)}", "not with these")


def _filters(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    none = {"credited": 0, "blind": 0, "largest_t": 0.0}
    for knob in sorted(old["filters"] | new["filters"]):
        a, b = (report["filters"].get(knob, none) for report in (old, new))
        moved = abs(a["largest_t"] - b["largest_t"]) > RATIO_MATTERS
        if a["credited"] != b["credited"] or moved:
            kind: Kind = "filter" if b["credited"] else "lost"
            was, now = (f"{f['credited']} credited, t {f['largest_t']:.2g}" for f in (a, b))
            yield Change(kind, "filter", knob, was, now)


def _coverage(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for have, total in (("pairs", "of"), ("triples", "of_triples")):
        a, b = old["coverage"], new["coverage"]
        if have in a and have in b and (a[have], a[total]) != (b[have], b[total]):
            less = b[have] * a[total] < a[have] * b[total]
            was, now = (f"{c[have]} of {c[total]}" for c in (a, b))
            yield Change("lost" if less else "gained", "coverage", have, was, now)


def _speed(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Only cases that both have measured."""
    before, after = ({entry["case"]: entry["seconds"] for entry in report.get("speed", ())} for report in (old, new))
    for id in sorted(before.keys() & after.keys()):
        a, b = before[id], after[id]
        if min(a, b) > 0 and max(a, b) > SPEED_CHANGED * min(a, b):
            was, now = (f"{seconds * 1e6:.4g} us" for seconds in (a, b))
            yield Change("slower" if b > a else "faster", "speed", id, was, now, factor=round(b / a, 3))
