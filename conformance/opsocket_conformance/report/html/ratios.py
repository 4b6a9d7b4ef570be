"""How much of the tolerance a backend uses: per operator, the distribution of its cases' largest |out - ref| / E."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from opsocket_conformance.report.html.markup import Markup, note, section, table, tag
from opsocket_conformance.report.text import ratio

_WIDTH, _HEIGHT, _BASE = 320, 46, 34
_BINS, _END = 50, 1.25
_HALF: Final = 0.5


def ratios(report: Mapping[str, Any]) -> Markup:
    """One row per operator, and one for all."""
    by_operator: dict[str, list[float]] = {}
    for case in report["cases"]:
        if case["ratio"] is not None:
            by_operator.setdefault(case["operator"], []).append(case["ratio"])
    everything = [value for values in by_operator.values() for value in values]
    if not everything:
        return section("ratios", "Error ratios", note("No case compared numbers by tolerance."))
    rows = [_row(tag("strong", "all"), sorted(everything))]
    rows += [_row(tag("code", operator), sorted(by_operator[operator])) for operator in sorted(by_operator)]
    columns = ("operator", "distribution of ratios", "cases", "exact", "median", "95 %", "worst", "over ½")
    return section(
        "ratios",
        "Error ratios",
        note(
            "A ratio is the largest |out − ref| / E of a case, where ref comes from a float64 oracle and E the bound "
            "derived from the request's declared numerics, the same for every backend. Above 1, the red line, a case "
            "fails; a correct implementation is expected to stay under ½, the dashed line. Cases that are exact (ratio "
            "0) are counted and not drawn."
        ),
        table("Error ratios by operator", columns, rows, numeric=range(2, 8)),
    )


def _row(name: Markup, values: Sequence[float]) -> tuple[Any, ...]:
    exact = sum(value == 0 for value in values)
    over = sum(value > _HALF for value in values)
    worst = tag("strong", ratio(values[-1]), class_="v fail") if values[-1] > 1 else ratio(values[-1])
    return (
        name,
        _histogram([value for value in values if value > 0]),
        len(values),
        exact,
        ratio(_quantile(values, 0.5)),
        ratio(_quantile(values, 0.95)),
        worst,
        tag("strong", over, class_="v unsupported") if over else 0,
    )


def _quantile(values: Sequence[float], q: float) -> float:
    """The smallest of sorted values that at least a share q of them does not exceed."""
    return values[min(len(values) - 1, int(q * len(values)))]


def _histogram(values: Sequence[float]) -> Markup:
    """Bars over ratios from 0 to 1.25, the last also for all beyond; the numbers beside it say the same in words."""
    bins = [0] * _BINS
    for value in values:
        bins[min(int(min(value, _END) / _END * _BINS), _BINS - 1)] += 1
    tallest, step = max(bins) or 1, _WIDTH / _BINS
    bars = []
    for index, number in enumerate(bins):
        if number:
            height = max(2.0, number / tallest * (_BASE - 4))
            beyond = index / _BINS * _END >= 1
            bars.append(
                tag(
                    "rect",
                    x=index * step + 0.5,
                    y=_BASE - height,
                    width=step - 1,
                    height=height,
                    class_="beyond" if beyond else "bar",
                )
            )
    marks = [
        tag("line", x1=_x(at), x2=_x(at), y1=0, y2=_BASE, class_="half" if at == _HALF else "limit")
        for at in (_HALF, 1.0)
    ]
    axis = tag("line", x1=0, x2=_WIDTH, y1=_BASE, y2=_BASE, class_="axis")
    words = [
        tag("text", label, x=_x(at) if at else 1, y=_HEIGHT - 1, text_anchor="middle" if at else "start")
        for at, label in ((0.0, "0"), (_HALF, "½"), (1.0, "1"))
    ]
    shown = tag("title", f"{len(values)} cases that are not exact; the tallest bar is {tallest if values else 0}")
    return tag(
        "svg",
        shown,
        bars,
        marks,
        axis,
        words,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        class_="histogram",
        role="img",
    )


def _x(value: float) -> float:
    return value / _END * _WIDTH


def gauge(value: float, end: float, limit: float | None = None) -> Markup:
    """A bar from 0 to `end`, and a line at a limit; the number stands beside it."""
    width = 120
    filled = min(max(value / end, 0.0), 1.0) * width if end else 0.0
    parts = [
        tag("rect", x=0, y=3, width=width, height=8, class_="track"),
        tag("rect", x=0, y=3, width=filled, height=8, class_="bar"),
    ]
    if limit is not None:
        parts.append(tag("line", x1=limit / end * width, x2=limit / end * width, y1=0, y2=14, class_="limit"))
    return tag("svg", parts, viewBox=f"0 0 {width} 14", class_="gauge", aria_hidden="true")
