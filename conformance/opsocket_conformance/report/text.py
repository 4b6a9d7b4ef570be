"""The words and rows that the terminal and the Markdown page have in common."""

from __future__ import annotations

from typing import Any, Final

PROFILE_COLUMNS: Final = ("profile", "verdict", "with")
_MOST_CHOICES = 4


def summary(report: dict[str, Any]) -> str:
    """How many cases came to what, and how much ground they cover, in one sentence."""
    counts = ", ".join(f"{number} {verdict}" for verdict, number in report["counts"].items() if number)
    credited = sum(entry["credited"] for entry in report["filters"].values())
    covered = report["coverage"]
    return (
        f"{counts or 'nothing was run'}; {covered['pairs']} of {covered['of']} pairs of attention's knobs; "
        f"{credited} credited filter readings"
    )


def profile_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """profile, verdict, what with; only profiles of which some case was run."""
    return [(p["name"], p["verdict"], _choices(p)) for p in report["profiles"] if any(p["counts"].values())]


def _choices(profile: dict[str, Any]) -> str:
    """What a held profile is held with, by type; of any other, how much of the best choice is missing."""
    if not profile["by"]:
        missing = profile["missing"]
        return f"{len(missing)} cases missing, such as {missing[0]}" if missing else ""
    by_first: dict[str, list[str]] = {}
    for choice in profile["by"]:
        first, _, rest = choice.partition(" ")
        by_first.setdefault(first, []).append(rest)
    return "; ".join(first + _some(rest) for first, rest in by_first.items())


def _some(choices: list[str]) -> str:
    if not any(choices):
        return ""
    more = len(choices) - _MOST_CHOICES
    return f" ({', '.join(choices[:_MOST_CHOICES])}{f' and {more} more' if more > 0 else ''})"


def operator_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """operator, cases, pass, fail (and crash), unsupported, worst ratio, provider"""
    return [
        (
            row["operator"],
            str(row["cases"]),
            str(row["counts"]["PASS"]),
            str(row["counts"]["FAIL"] + row["counts"]["CRASH"]),
            str(row["counts"]["UNSUPPORTED"]),
            ratio(row["worst_ratio"]),
            ", ".join(row["providers"]) + (" (composed)" if row["tiers"] == ["composed"] else ""),
        )
        for row in report["operators"]
    ]


def ratio(value: float | None) -> str:
    """|out - ref| / E with the digits that matter."""
    if value is None:
        return ""
    return "not finite" if value >= 1e308 else f"{value:.3g}"
