"""How fast, against what the memory allows: only where it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opsocket_conformance.report.html.markup import Markup, code, details, note, section, table, tag
from opsocket_conformance.report.html.ratios import gauge

_MOST_SHOWN = 1000


def speed(report: Mapping[str, Any]) -> Markup:
    """Operators by the share of the limit that they reach, then every case; nothing where nothing was asked for."""
    measured: Sequence[Mapping[str, Any]] = report.get("speed", ())
    if not measured and not report.get("speed_untimed"):
        return Markup("")
    by_operator: dict[str, list[Mapping[str, Any]]] = {}
    for entry in measured:
        by_operator.setdefault(entry["operator"], []).append(entry)
    rows = [_operator(name, by_operator[name]) for name in sorted(by_operator)]
    return section(
        "speed",
        "Speed",
        note(
            "Times of calls through the public interface, overhead included: no benchmark, for these shapes are small. "
            "GB/s are the bytes that must be moved at the least over the time taken. ",
            *_limit(report.get("speed_limit")),
        ),
        table(
            "Speed by operator",
            ("operator", "cases", "median GB/s", "best GB/s", "median share of the limit", ""),
            rows,
            numeric=range(1, 5),
        ),
        details(f"All {len(measured)} measurements", _all(measured)),
        *_untimed(report.get("speed_untimed", ())),
    )


def _limit(limit: Mapping[str, Any] | None) -> Iterator[str]:
    """What cold means, and what the share is a share of."""
    if limit is None:
        yield "The limit is the bandwidth measured on that machine."
        return
    cache = f"{limit['cache_bytes'] / 2**20:.4g} MiB ({limit['cache_by']})"
    yield f"Cold: the inputs are others each time, from more memory than the last-level cache of {cache} holds; where "
    yield "they come from less, no share is given. "
    if limit["gb_s"] is None:
        yield f"The limit is not known: {limit['by']}."
    else:
        yield f"The limit, measured in the same run, is {limit['gb_s']:.3g} GB/s ({limit['by']})."


def _untimed(untimed: Sequence[Mapping[str, Any]]) -> Iterator[Markup]:
    if untimed:
        rows = [(code(entry["case"]), entry["why"]) for entry in untimed[:_MOST_SHOWN]]
        yield details(f"{len(untimed)} could not be timed", table("Not timed", ("case", "why"), rows))


def _operator(name: str, entries: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    rates = sorted(entry["gb_s"] for entry in entries)
    shares = sorted(entry["fraction_of_limit"] for entry in entries if entry["fraction_of_limit"] is not None)
    share = shares[len(shares) // 2] if shares else None
    return (
        code(name),
        len(entries),
        f"{rates[len(rates) // 2]:.3g}",
        f"{rates[-1]:.3g}",
        "" if share is None else _share(share),
        "" if share is None else gauge(share, 1.0),
    )


def _all(measured: Sequence[Mapping[str, Any]]) -> Markup:
    ordered = sorted(measured, key=lambda entry: (entry["operator"], -entry["gb_s"]))
    rows = [
        (
            code(entry["case"]),
            f"{entry['seconds'] * 1e6:.4g}",
            f"{entry['warm_seconds'] * 1e6:.4g}" if "warm_seconds" in entry else "",
            f"{entry['bytes'] / 1e6:.3g}",
            f"{entry['gb_s']:.3g}",
            "" if entry["fraction_of_limit"] is None else _share(entry["fraction_of_limit"]),
        )
        for entry in ordered[:_MOST_SHOWN]
    ]
    columns = ("case", "µs a call, cold", "µs a call, warm", "MB", "GB/s", "of the limit")
    shown = table("Speed of every case", columns, rows, numeric=range(1, 6))
    left = len(ordered) - len(rows)
    return tag("div", shown, note(f"and {left} more, which the JSON report has") if left else "")


def _share(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 1 else f"{100 * value:.0f} %" if value < 100 else f"{value:.3g}"
