"""What changed between two reports: verdicts, ratios, time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_RATIO_GREW, _RATIO_MATTERS = 1.5, 0.1
_BROKEN = ("FAIL", "CRASH", "NOT_RUN")


@dataclass(frozen=True)
class Change:
    """kind: "broken", "lost" (passed, and is no longer supported, excluded or gone), "mended", "gained", "verdict",
    "ratio" or "new". One of the first two makes the newer report a regression."""

    kind: str
    case: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.kind:8} {self.case}: {self.old} -> {self.new}"


REGRESSIONS = ("broken", "lost")


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every case whose verdict changed, or whose ratio grew by half and to where it matters; regressions first."""
    before, after = ({case["id"]: case for case in report["cases"]} for report in (old, new))
    changes = [change for id in sorted(before | after) for change in _changes(id, before.get(id), after.get(id))]
    order = ("broken", "lost", "ratio", "verdict", "mended", "gained", "new")
    return sorted(changes, key=lambda change: order.index(change.kind))


def _changes(id: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> Iterator[Change]:
    a, b = (case["verdict"] if case else "absent" for case in (old, new))
    if a != b:
        yield Change(_kind(a, b), id, a, b)
    elif old and new and None not in (old["ratio"], new["ratio"]):
        grown = new["ratio"] > _RATIO_GREW * old["ratio"]
        if grown and new["ratio"] > _RATIO_MATTERS:
            yield Change("ratio", id, f"{old['ratio']:.3g}", f"{new['ratio']:.3g}")


def _kind(old: str, new: str) -> str:
    if new in _BROKEN:
        return "broken"
    if old == "PASS":
        return "lost"
    if old == "absent":
        return "new"
    if new == "PASS":
        return "mended" if old in _BROKEN else "gained"
    return "verdict"


def profile_changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Profiles whose verdict differs: name, old, new."""
    before, after = ({p["name"]: p["verdict"] for p in report["profiles"]} for report in (old, new))
    names = sorted(before | after)
    rows = [(name, before.get(name, "absent"), after.get(name, "absent")) for name in names]
    return [row for row in rows if row[1] != row[2]]
