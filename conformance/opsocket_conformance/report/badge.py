"""One SVG line for a README: what was proven, on what, and not a word more."""

from __future__ import annotations

import html
import unicodedata
from typing import Any, Final

from opsocket_conformance.report.text import printable

_LABEL: Final = "conformance"
_MOST: Final = 80
_COLOURS: Final = {"green": "#0f6b34", "red": "#b3151f", "partial": "#7a4a00", "label": "#3b414c"}
_PIXELS: Final = {
    letter: width
    for width, letters in (
        (3.2, "ijl.,:;'|!"),
        (4.5, 'ftrI()[]{} -/"`\\'),
        (6.3, "acesvxyzkJ_?*^"),
        (7.1, "bdghnopqu0123456789LFTEZ+<>=~#$"),
        (8.4, "wABCDGHKNOPQRSUVXY&"),
        (11.0, "mMW@%"),
    )
    for letter in letters
}
"""Of an 11 px sans-serif, on the generous side; the text is fitted to what this adds up to."""


def badge(report: dict[str, Any]) -> str:
    """An SVG: green for what the device itself proved, amber for anything less, red with the reason."""
    words, state = message(report)
    text = printable(words)
    if len(text) > _MOST:
        text = text[: _MOST - 3] + "..."
    left, right = _width(_LABEL) + 14, _width(text) + 14
    # Rounded without a clip path, whose id two badges on one page would share.
    parts = (
        f'<rect width="{left + right:.0f}" height="20" rx="3" fill="{_COLOURS[state]}"/>'
        f'<path d="M3 0H{left:.0f}V20H3A3 3 0 0 1 0 17V3A3 3 0 0 1 3 0Z" fill="{_COLOURS["label"]}"/>'
    )
    label = _text(_LABEL, left / 2, left - 14) + _text(text, left + right / 2, right - 14)
    said, size = html.escape(f"{_LABEL}: {text}"), f'width="{left + right:.0f}" height="20"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}">'
        f"<title>{said}</title>"
        f"{parts}"
        f'<g fill="#ffffff" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="11" text-anchor="middle">'
        f"{label}</g></svg>\n"
    )


def message(report: dict[str, Any]) -> tuple[str, str]:
    """What a badge says, and in which colour. Profiles count only where they are held without exclusions."""
    where = _where(report)
    if not report["verdict"]["green"]:
        return f"red: {report['verdict']['reason']}", "red"
    held = [profile["name"] for profile in report["profiles"] if profile["verdict"] == "held"]
    if not held:
        return f"{report['counts']['PASS']} cases pass, no whole profile, {where}", "partial"
    first = "decoder" if "decoder" in held else held[0]
    others = len(held) - 1
    words = first if not others else f"{first} + {others} profile{'s' if others > 1 else ''}"
    return f"{words}, {where}", "green" if report["evidence"]["numerics"] == "device" else "partial"


def _where(report: dict[str, Any]) -> str:
    """The evidence: where the numbers came from, and the tier where it is the smallest."""
    numerics = str(report["evidence"]["numerics"])
    words = {"device": "device", "none": "no numerics"}.get(numerics, _without_chip(report))
    return f"{words}, smoke tier" if report["run"]["tier"] == "smoke" else words


def _without_chip(report: dict[str, Any]) -> str:
    """Both kinds of evidence, each the lowest of all operators."""
    numerics, artifact = report["evidence"]["numerics"], report["evidence"]["artifact"]
    ladder = report.get("ladder")
    if artifact == "none" or ladder is None:
        return f"{numerics} only"
    return f"{numerics} + {artifact} for {len(ladder['architectures'])} chips"


def _width(text: str) -> float:
    return sum(_PIXELS.get(c, 12.0 if unicodedata.east_asian_width(c) in "WF" else 8.0) for c in text)


def _text(text: str, x: float, width: float) -> str:
    return f'<text x="{x:.1f}" y="14" textLength="{width:.1f}">{html.escape(text)}</text>'
