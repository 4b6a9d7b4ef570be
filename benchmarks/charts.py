"""The plots that plot.py draws: each a function of what was measured, None where that holds nothing for it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from goals import goal
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measurements import LIMITS, OURS, Comparison, Measured, Operator, Run, compared

from opsocket_engine.figures import (
    COLOURS,
    FAINT,
    INK,
    PAPER,
    Line,
    Look,
    Panel,
    Point,
    curves,
    look_number,
    new_figure,
    round_numbers,
)

LOOKS = {
    OURS: Look(COLOURS[0], "o"),
    "opsocket f32": Look(COLOURS[5], "o", dashed=True),
    "ggml": Look(COLOURS[1], "s"),
    "llama.cpp": Look(COLOURS[1], "s", dashed=True),
    "llama.cpp q4_0": Look(COLOURS[1], "s"),
    "openvino": Look(COLOURS[2], "D"),
    "onnxruntime": Look(COLOURS[3], "^"),
    "onnxruntime genai": Look(COLOURS[3], "^"),
    "vllm": Look(COLOURS[4], "v"),
    "torch": Look(COLOURS[6], "P"),
    "transformers bf16": Look(COLOURS[6], "P"),
    "transformers f32": Look(COLOURS[7], "X", dashed=True),
}
KINDS = {
    "matmul": "matrix product", "experts": "product of experts", "decode": "decode attention",
    "prefill": "prefill attention",
}  # fmt: skip
CACHES = {"bf16": "bf16 (ggml: f16)", "f8e4m3fn": "f8 (e4m3)", "i8": "i8 (ggml: q8_0)", "i4": "i4 (ggml: q4_0)"}
ATTENTION_HEADS = (32, 8, 128)
SHORT_BATCHES = (1, 8)
BF16_ONLY = ("torch", "vllm")
"""Systems whose workers take bf16 queries in every case."""


def look(system: str) -> Look:
    return LOOKS.get(system) or look_number(sum(map(ord, system)))


def roofline(measured: Measured) -> Figure | None:
    """Rate against operations per byte, below what the machine reads and computes at most."""
    roofs = _roofs(measured)
    if not measured.operators or "read" not in roofs or len(roofs) < 2:
        return None
    read = roofs.pop("read")
    points = [(o.operations / o.size, o.operations / statistics.median(o.seconds), o) for o in measured.operators]
    figure = new_figure("What each operator reaches of the machine", _note(measured, "medians"), 9.2, 6.4)
    axes = figure.add_subplot()
    low, high = min(x for x, _, _ in points) / 1.6, max(x for x, _, _ in points) * 5
    top = max(roofs.values())
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(min(y for _, y, _ in points) / 1e9 / 1.5, top / 1e9 * 1.7),
        xlabel="operations per byte of weights or cache", ylabel="10⁹ operations per second",
    )  # fmt: skip
    for name, rate in roofs.items():
        corner = rate / read
        axes.plot([corner, high], [rate / 1e9] * 2, color=FAINT, linewidth=1.2)
        axes.text(high / 1.05, rate / 1e9 * 1.04, f"{name} {rate / 1e9:.0f}", ha="right", va="bottom", size=8)
    corner = top / read
    axes.plot([low, corner], [low * read / 1e9, top / 1e9], color=FAINT, linewidth=1.2)
    along = math.degrees(math.atan(read / 1e9))  # in data coordinates, where the text turns with the axes
    axes.text(
        low * 1.15, low * 1.15 * read / 1e9 * 1.08, f"reading memory: {read / 1e9:.0f} GB/s", size=8,
        rotation=along, rotation_mode="anchor", transform_rotates_text=True,
    )  # fmt: skip
    shapes = dict(zip(KINDS, ("o", "v", "^", "s"), strict=True))
    for x, y, operator in sorted(points, key=lambda p: p[2].system == OURS):
        ours = operator.system == OURS
        colour = look(operator.system).colour
        axes.plot(
            x, y / 1e9, shapes.get(operator.kind, "D"), color=colour, markersize=6 if ours else 5,
            markerfacecolor=colour if ours else "none", markeredgewidth=1.1, alpha=0.9, linestyle="none",
        )  # fmt: skip
    for values, ticks in ((axes.set_xticks, axes.get_xlim()), (axes.set_yticks, axes.get_ylim())):
        numbers = round_numbers(*ticks)
        values(numbers, [f"{v:g}" for v in numbers])
    axes.minorticks_off()
    systems = sorted({o.system for _, _, o in points}, key=_order)
    keys = [_key(axes, s, "o", look(s).colour, s == OURS) for s in systems]
    keys += [_key(axes, KINDS[k], shapes[k], FAINT, False) for k in KINDS if any(o.kind == k for *_, o in points)]
    axes.legend(handles=keys, loc="lower right", fontsize=8)
    return figure


def _key(axes: Axes, name: str, shape: str, colour: str, full: bool) -> object:
    return axes.plot(
        [], [], shape, color=colour, markerfacecolor=colour if full else "none", linestyle="none", label=name
    )[0]


def _roofs(measured: Measured) -> dict[str, float]:
    """The rates on all threads: the medians beside the samples; what no sample has, from `opsocket limits`."""
    most = max((limit.threads or 1 << 30 for limit in measured.limits), default=0)
    roofs = {limit.name: limit.per_second for limit in measured.limits if (limit.threads or 1 << 30) == most}
    rates = defaultdict(list)
    for operator in measured.operators:
        rates[operator.limit] += operator.limit_rates
    return roofs | {name: statistics.median(values) for name, values in rates.items()}


def context_model(measured: Measured) -> Figure | None:
    """A decoded token's time against the tokens before it."""
    runs = [run for run in measured.runs if run.batch == 1]
    lines = _lines(runs, lambda r: r.prompt, lambda r: [1e3 / rate for rate in r.decode_rates])
    panel = Panel("", "tokens in the cache", "milliseconds per decoded token", lines)
    return curves("One sequence: cost against context", _note(measured), [panel]) if lines else None


def batch_model(measured: Measured) -> Figure | None:
    """Tokens per second against sequences side by side."""
    runs = [run for run in measured.runs if run.prompt == 1]
    lines = _lines(runs, lambda r: r.batch, lambda r: list(r.decode_rates))
    panel = Panel("", "sequences decoded side by side", "decoded tokens per second, all sequences", lines)
    return curves("Short contexts: speed against batch", _note(measured), [panel]) if lines else None


def context_attention(measured: Measured) -> Figure | None:
    """Decode attention's time against the context, for each kind of cache."""
    chosen = [o for o in _attention(measured) if o.facts["batch"] == 1]
    panels = []
    for cache, title in CACHES.items():
        lines = _lines(
            [o for o in chosen if o.facts["cache"] == cache], lambda o: o.facts["context"], _microseconds, _query
        )
        if lines:
            panels.append(Panel(f"cache: {title}", "tokens in the cache", "microseconds per call", lines))
    heads = "/".join(map(str, ATTENTION_HEADS[:2]))
    title = f"Decode attention, {heads} heads of {ATTENTION_HEADS[2]}, one sequence"
    return curves(title, _note(measured), panels, room=0.65) if panels else None


def batch_operators(measured: Measured) -> Figure | None:
    """A product's and an attention's time against rows or sequences."""
    products = [o for o in measured.operators if o.facts["op"] == "matmul" and o.facts["m"] <= 16]
    shapes = defaultdict(list)
    for operator in products:
        shapes[operator.facts["format"], operator.facts["n"], operator.facts["k"]].append(operator)
    panels = []
    for (name, n, k), chosen in shapes.items():
        if len({o.facts["m"] for o in chosen}) > 2:
            lines = _lines(chosen, lambda o: o.facts["m"], _microseconds)
            panels.append(Panel(f"{name}, {n} x {k}", "rows", "microseconds per call", lines))
    chosen = [o for o in _attention(measured) if o.facts["context"] == 1024 and o.facts["cache"] == "bf16"]
    chosen = [o for o in chosen if o.facts["dtype"] == "bf16"]
    if len({o.facts["batch"] for o in chosen}) > 2:
        lines = _lines(chosen, lambda o: o.facts["batch"], _microseconds)
        panels.append(Panel("decode attention, context 1024, bf16", "sequences", "microseconds per call", lines))
    return curves("Cost against batch", _note(measured), panels) if panels else None


def model(measured: Measured) -> Figure | None:
    """Bars: every system's prompt and decode speed, case by case."""
    cases = defaultdict(list)
    for run in sorted(measured.runs, key=lambda r: _order(r.system), reverse=True):
        if run.prompt > 1 or run.batch in SHORT_BATCHES:  # the others are points of the curve over batches
            cases[run.batch, run.prompt].append(run)
    panels = []
    for (batch, prompt), row in sorted(cases.items(), key=lambda item: (item[0][1] > 1, item[0])):
        start = f"{batch} sequence{'s' * (batch > 1)}"
        if prompt > 1:
            panels.append((f"{start}: prompt of {prompt}", row, [r.prompt_rates for r in row]))
        panels.append((f"{start}: decode after {prompt}", row, [r.decode_rates for r in row]))
    if not panels:
        return None
    lines = [max(len(row) for _, row, _ in panels[at : at + 2]) for at in range(0, len(panels), 2)]
    height = 0.9 + sum(0.19 * count + 0.42 for count in lines)
    figure = new_figure("Whole model: tokens per second of all sequences", _note(measured), 9.6, height)
    grid = figure.subplots(len(lines), 2, squeeze=False, height_ratios=[count + 1 for count in lines]).flat
    for axes, panel in zip(grid, panels, strict=False):
        _bars(axes, *panel)
    for axes in list(grid)[len(panels) :]:
        axes.set_axis_off()
    return figure


def _bars(axes: Axes, title: str, row: Sequence[Run], rates: Sequence[Sequence[float]]) -> None:
    most = max(map(max, rates))
    for at, (run, values) in enumerate(zip(row, rates, strict=True)):
        middle = statistics.median(values)
        axes.barh(at, middle, 0.72, color=look(run.system).colour, alpha=1.0 if run.system == OURS else 0.6)
        axes.plot([min(values), max(values)], [at, at], color=INK, linewidth=0.9)
        axes.text(max(*values, middle) + 0.012 * most, at, f"{middle:.0f}", va="center", size=7.5)
    axes.set_title(title)
    axes.set_yticks(range(len(row)), [run.system for run in row], size=7.5)
    axes.set(xlim=(0, most * 1.1), ylim=(-0.6, len(row) - 0.4), xticks=[])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)


def share(measured: Measured) -> Figure | None:
    """Bars: what each operator of ours reaches of its limit, with its goal and the best peer."""
    rows = compared(measured.operators)
    if not rows:
        return None
    lines: list[Comparison | str] = []
    for kind, limit in dict.fromkeys((row.ours.kind, row.ours.limit) for row in rows):
        lines.append(f"{KINDS.get(kind, kind)}, of {LIMITS.get(limit, limit)}")
        lines += [row for row in rows if (row.ours.kind, row.ours.limit) == (kind, limit)]
    note = _note(measured, "medians; limits measured beside the samples; peers: the best of each row")
    figure = new_figure("What each operator reaches of its limit", note, 9.2, 1.3 + 0.2 * len(lines))
    axes = figure.add_subplot()
    places = range(len(lines))[::-1]
    for at, line in zip(places, lines, strict=True):
        if isinstance(line, Comparison):
            _share(axes, at, line)
    axes.set_yticks(places, [line if isinstance(line, str) else line.ours.label for line in lines], size=7.5)
    for text, line in zip(axes.get_yticklabels(), lines, strict=True):
        text.set_weight("bold" if isinstance(line, str) else "normal")
    axes.set(xlim=(0, 105), ylim=(-0.7, len(lines) - 0.3), xlabel="% of the limit")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    keys = [axes.barh([0], [0], color=look(OURS).colour, label=OURS)]
    keys += axes.plot([], [], "|", color=INK, markersize=9, markeredgewidth=1.8, linestyle="none", label="goal")
    for system in sorted({row.best.system for row in rows if row.best}, key=_order):
        keys += axes.plot([], [], look(system).marker, color=look(system).colour, linestyle="none", label=system)
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=8)
    return figure


def _share(axes: Axes, at: int, row: Comparison) -> None:
    best, reached = row.best, 100 * row.reached
    axes.barh(at, reached, 0.74, color=look(OURS).colour)
    inside = reached > 6
    axes.text(
        reached - 0.6 if inside else reached + 0.6, at, f"{reached:.0f}", color=PAPER if inside else INK, size=7,
        ha="right" if inside else "left", va="center_baseline",
    )  # fmt: skip
    if best:
        drawn = look(best.system)
        axes.plot(
            min(100 * best.rate / row.limit, 104), at, drawn.marker, color=drawn.colour, markersize=5.5,
            markeredgecolor=PAPER, markeredgewidth=0.7,
        )  # fmt: skip
    if (wanted := goal(row.ours.facts)) is not None:
        axes.plot([100 * wanted] * 2, [at - 0.42, at + 0.42], color=INK, linewidth=1.8)


def _attention(measured: Measured) -> list[Operator]:
    keys = ("q_heads", "kv_heads", "head_dim")
    return [o for o in measured.operators if o.kind == "decode" and tuple(o.facts[k] for k in keys) == ATTENTION_HEADS]


def _microseconds(operator: Operator) -> list[float]:
    return [1e6 * seconds for seconds in operator.seconds]


def _query(operator: Operator) -> str:
    """Which line an operator belongs to: systems that are measured with both f32 and bf16 queries have two."""
    return ", bf16 q" if operator.system in BF16_ONLY else f", {operator.facts['dtype']} q"


def _lines(
    rows: Sequence[Any], x: Callable[[Any], float], ys: Callable[[Any], list[float]],
    suffix: Callable[[Any], str] = lambda row: "",
) -> tuple[Line, ...]:  # fmt: skip
    """One line a system (and suffix) with at least two points."""
    found: dict[tuple[str, str], dict[float, Point]] = defaultdict(dict)
    for row in rows:
        values = ys(row)
        point = Point(x(row), statistics.median(values), min(values), max(values))
        found[row.system, suffix(row)][point.x] = point
    names = sorted((key for key, points in found.items() if len(points) > 1), key=lambda key: (_order(key[0]), key))
    made = []
    for system, ending in names:
        style = look(system)
        if ending.startswith(", f32"):
            style = Look(style.colour, style.marker, dashed=True)
        points = found[system, ending]
        made.append(Line(system + ending, tuple(points[x] for x in sorted(points)), style))
    return tuple(made)


def _order(system: str) -> int:
    return list(LOOKS).index(system) if system in LOOKS else len(LOOKS)


def _note(measured: Measured, spread: str = "medians; whiskers: least and most") -> str:
    return f"{measured.machine}; {spread}"


CHARTS = {
    "roofline": roofline,
    "share": share,
    "model": model,
    "context-model": context_model,
    "context-attention": context_attention,
    "batch-model": batch_model,
    "batch-operators": batch_operators,
}
