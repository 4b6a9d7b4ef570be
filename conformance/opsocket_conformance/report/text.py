"""The words and rows that the terminal, the Markdown page and the HTML page have in common."""

from __future__ import annotations

import shlex
from typing import Any, Final

PROFILE_COLUMNS: Final = ("profile", "verdict", "with")
_MOST_CHOICES = 4

NUMERICS: Final = {
    "device": "computed on the device itself",
    "interpreted": "computed by an interpreter on the host",
    "emulated": "computed by an emulation on the host, which says nothing about the chip's own arithmetic",
    "none": "nothing was computed",
}
ARTIFACT: Final = {
    "device": "the kernels that ship ran",
    "compiled": "the kernels that ship were compiled, and did not run",
    "schema": "only names, types and shapes were checked",
    "none": "no kernel that ships was involved",
}


def printable(text: str) -> str:
    """Text in which nothing moves a cursor, turns the reading direction, hides, or can't be encoded: all that is not
    printable, but for line ends and tabs, is spelled out as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clipped(text: str, most: int) -> str:
    """At most so many characters and a note: the beginning, and the end, where a traceback says what happened."""
    if len(text) <= most:
        return text
    left = len(text) - most
    return f"{text[: most // 3]}\n[... {left} characters left out ...]\n{text[len(text) - most + most // 3 :]}"


def rerun(report: dict[str, Any], case_id: str) -> str:
    """The command that runs exactly one case again. It may come from a stranger's report: every word is quoted."""
    run = report["run"]
    words = [*_program(report), "--case", case_id]
    if run["seed"]:
        words += ["--seed", str(run["seed"])]
    return _command(words)


def command_of(report: dict[str, Any]) -> str:
    """The command that makes the whole run again."""
    run = report["run"]
    words = [*_program(report), "--tier", run["tier"]]
    for flag, value in (
        ("--profile", ",".join(run["profiles"])),
        ("--filter", run["filter"]),
        ("--shard", run["shard"]),
        ("--seed", str(run["seed"] or "")),
    ):
        words += [flag, value] if value else []
    for case_id in run["cases"]:
        words += ["--case", case_id]
    return _command(words)


def _program(report: dict[str, Any]) -> list[str]:
    """`opsocket conformance`; where something stood in for the chip, the command that has it do so."""
    run, ladder = report["run"], report.get("ladder")
    if ladder is None:
        return ["opsocket", "conformance", *_backend(run)]
    backend = {**run, "backend": run["backend"].partition(":")[0]} if ladder["stand_in"] else run
    return ["opsocket", "verify", *_backend(backend), "--arch", ",".join(ladder["architectures"])]


def _backend(run: dict[str, Any]) -> list[str]:
    pins = [word for operator, provider in run["pins"].items() for word in ("--pin", f"{operator}={provider}")]
    return ["--backend", run["backend"], *pins]


def _command(words: list[str]) -> str:
    return " ".join(shlex.quote(printable(word).replace("\n", " ").replace("\t", " ")) for word in words)


def summary(report: dict[str, Any]) -> str:
    """How many cases came to what, and how much ground they cover, in one sentence."""
    counts = ", ".join(f"{number} {verdict}" for verdict, number in report["counts"].items() if number)
    credited = sum(entry["credited"] for entry in report["filters"].values())
    return f"{counts or 'nothing was run'}; {coverage_words(report)}; {credited} credited filter readings"


def coverage_words(report: dict[str, Any]) -> str:
    """Which pairs, and which triples where they were counted, of attention's knob values ran together."""
    covered = report["coverage"]
    parts = [
        f"{covered[have]} of {covered[of]} {have}"
        + (f" ({covered[f'credited_{have}']} credited)" if f"credited_{have}" in covered else "")
        for have, of in (("pairs", "of"), ("triples", "of_triples"))
        if have in covered
    ]
    return f"{' and '.join(parts)} of attention's knobs"


def evidence_words(report: dict[str, Any]) -> str:
    """What the run saw with its own eyes, in one sentence."""
    evidence = report["evidence"]
    numerics, artifact = evidence["numerics"], evidence["artifact"]
    return f"numerics: {numerics} ({NUMERICS[numerics]}); artifact: {artifact} ({ARTIFACT[artifact]})"


def profile_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """profile, verdict, what with; only profiles of which some case was run."""
    return [(p["name"], p["verdict"], _choices(p)) for p in report["profiles"] if any(p["counts"].values())]


def choices_by_type(profile: dict[str, Any]) -> dict[str, list[str]]:
    """What a profile is held with: by the first choice, which is the type, the others."""
    by_first: dict[str, list[str]] = {}
    for choice in profile["by"]:
        first, _, rest = choice.partition(" ")
        by_first.setdefault(first, []).append(rest)
    return by_first


def _choices(profile: dict[str, Any]) -> str:
    """What a held profile is held with, by type; of any other, how much of the best choice is missing."""
    if not profile["by"]:
        missing = profile["missing"]
        return f"{len(missing)} cases missing, such as {missing[0]}" if missing else ""
    return "; ".join(first + _some(rest) for first, rest in choices_by_type(profile).items())


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
