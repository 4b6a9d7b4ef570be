"""The kill matrix as Markdown, made from the outcomes of a self-test: what the suite finds, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opsocket_conformance.power.self_test import Outcome

_VERDICTS = ("killed", "weak", "survived", "not run")


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line: how many of how many, in which time."""
    counts = ", ".join(f"{n} {verdict}" for verdict in _VERDICTS if (n := _count(outcomes, verdict)))
    seconds = sum(outcome.seconds for outcome in outcomes)
    return f"{len(outcomes)} faults: {counts}; {sum(o.ran for o in outcomes)} cases in {seconds:.0f} s"


def matrix(outcomes: Sequence[Outcome]) -> str:
    """Counts by category; the faults that are not killed; then every fault with the cases that found it."""
    categories = list(dict.fromkeys(outcome.category for outcome in outcomes))
    lines = [summary(outcomes) + ".", "", "| category | faults | " + " | ".join(_VERDICTS) + " |"]
    lines.append("| --- |" + " ---: |" * (1 + len(_VERDICTS)))
    for category in categories:
        of_it = [outcome for outcome in outcomes if outcome.category == category]
        lines.append(_row(category, len(of_it), *(_count(of_it, verdict) for verdict in _VERDICTS)))
    lines += ["", "## Not killed", ""]
    alive = [outcome for outcome in outcomes if outcome.verdict != "killed"]
    lines += [_survivor(outcome) for outcome in alive] or ["None."]
    for category in categories:
        lines += [
            "",
            f"## {category.capitalize()}",
            "",
            "| fault | what its author did | cases until killed | found by |",
        ]
        lines.append("| --- | --- | ---: | --- |")
        lines += [_fault(outcome) for outcome in outcomes if outcome.category == category]
    return "\n".join(lines) + "\n"


def _survivor(outcome: Outcome) -> str:
    found = f"{outcome.verdict}, {len(outcome.kills)} of {outcome.ran} cases"
    return " ".join(part for part in (f"- **{outcome.fault}** ({found}): {outcome.wrong}", outcome.unseen) if part)


def _fault(outcome: Outcome) -> str:
    found = " ".join(f"`{_escaped(case)}`" for case in outcome.kills[:2]) or outcome.verdict
    return _row(outcome.fault, outcome.wrong, outcome.ran, found)


def _row(*cells: object) -> str:
    return "| " + " | ".join(_escaped(str(cell)) for cell in cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("\\|", "|").replace("|", "\\|")


def _count(outcomes: Iterable[Outcome], verdict: str) -> int:
    return sum(outcome.verdict == verdict for outcome in outcomes)
