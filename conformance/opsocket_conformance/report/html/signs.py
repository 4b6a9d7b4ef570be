"""How a verdict looks: a sign and a word always, a colour besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from opsocket_conformance.report.html.markup import Markup, tag

SIGNS: Final = {
    "PASS": ("✓", "pass"),
    "FAIL": ("✗", "fail"),
    "CRASH": ("✗", "fail"),
    "UNSUPPORTED": ("–", "unsupported"),
    "EXCLUDED": ("○", "rest"),
    "NOT_RUN": ("○", "rest"),
}
"""By verdict: its sign, and the class of its colour."""
SIGN_OF: Final = {style: sign for sign, style in SIGNS.values()}
_WORDS: Final = {"pass": "pass", "fail": "fail", "unsupported": "unsupported", "rest": "excluded or not run"}


def verdict(name: str) -> Markup:
    """A verdict with its sign."""
    sign, style = SIGNS[name]
    return tag("span", f"{sign} {name}", class_=f"v {style}")


def good(words: str) -> Markup:
    return tag("span", f"✓ {words}", class_="v pass")


def bad(words: str) -> Markup:
    return tag("span", f"✗ {words}", class_="v fail")


def partly(words: str) -> Markup:
    return tag("span", f"◐ {words}", class_="v unsupported")


def neither(words: str) -> Markup:
    return tag("span", f"– {words}", class_="v rest")


def tally(verdicts: Iterable[str]) -> dict[str, int]:
    """How many of each colour: pass, fail, unsupported, rest."""
    found = dict.fromkeys(_WORDS, 0)
    for name in verdicts:
        found[SIGNS[name][1]] += 1
    return found


def cell(counts: Mapping[str, int]) -> Markup:
    """A cell of the support matrix: what is wrong comes first."""
    if not any(counts.values()):
        return tag("span", "·", class_="muted", aria_label="no case", role="img")
    parts = [
        tag(
            "span",
            f"{SIGN_OF[style]} {counts[style]}",
            tag("span", f" {_WORDS[style]}", class_="hide"),
            class_=f"v {style}",
        )
        for style in ("fail", "pass", "unsupported", "rest")
        if counts[style]
    ]
    return Markup(" ".join(parts))


def failed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases that came out wrong."""
    return [case for case in report["cases"] if case["verdict"] in ("FAIL", "CRASH")]
