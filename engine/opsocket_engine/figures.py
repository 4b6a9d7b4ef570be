"""Drawing measurements, by matplotlib (`pip install 'opsocket[bench]'`): small SVGs that read on light and on dark.

Colours are Okabe and Ito's, told apart with any colour vision; lines and points differ in their markers too, and carry
their names. Text stays text. The same numbers give the same file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#1f2328", "#656d76", "#d8dee4", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9a6324", "#7f7f7f")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
_IN_THE_DARK = {INK: "#e6edf3", FAINT: "#9198a1", GRID: "#30363d", PAPER: "#0d1117", COLOURS[0]: "#3d9bdc"}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "opsocket", "font.family": "sans-serif", "font.size": 9,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6, "text.color": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.facecolor": PAPER, "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "legend.frameon": False,
    "xtick.minor.bottom": False, "ytick.minor.left": False,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How one system is drawn, in every plot."""

    colour: str
    marker: str
    dashed: bool = False


@dataclass(frozen=True)
class Point:
    """One measurement: x, and of y the median, the least and the most."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[Point, ...]
    look: Look | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of logarithmic axes. Labels name the units."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


def look_number(number: int) -> Look:
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])


def new_figure(title: str, note: str, width: float, height: float) -> Figure:
    """An empty figure, inches wide and high. ImportError where matplotlib is not installed."""
    import matplotlib
    from matplotlib.figure import Figure as New

    matplotlib.rcParams.update(matplotlib.rcParamsDefault | _SETTINGS)
    figure = New(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.56 / height))
    figure.text(0.1 / width, 1 - 0.1 / height, title, size=11, weight="bold", va="top")
    figure.text(0.1 / width, 1 - 0.36 / height, note, size=8, color=FAINT, va="top")
    return figure


def curves(title: str, note: str, panels: Items[Panel], columns: int = 2, room: float = 0.5) -> Figure:
    """Lines over logarithmic axes, each named at its end. room: for the names, as a share of a panel's width."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(title, note, 1.2 + 4.2 * columns, 0.6 + 3.2 * rows)
    for number, panel in enumerate(panels):
        _draw(figure.add_subplot(rows, columns, number + 1), panel, room)
    return figure


def _draw(axes: Axes, panel: Panel, room: float) -> None:
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, xscale="log", yscale="log")
    places = sorted({point.x for line in panel.lines for point in line.points})
    values = [v for line in panel.lines for point in line.points for v in (point.low, point.high)]
    low, high = min(values) / 1.15, max(values) * 1.15
    span = math.log(places[-1] / places[0]) or 1.0
    axes.set_xlim(places[0] * math.exp(-0.06 * span), places[-1] * math.exp(room * span))
    axes.set_ylim(low, high)
    apart = [at for at, next_ in pairwise(places) if math.log(next_ / at) > 0.1 * span]
    axes.set_xticks([*apart, places[-1]], [f"{place:g}" for place in (*apart, places[-1])])
    ticks = round_numbers(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    ends = spread([math.log(line.points[-1].y / low) / math.log(high / low) for line in panel.lines], 0.062)
    for number, (line, end) in enumerate(zip(panel.lines, ends, strict=True)):
        look = line.look or look_number(number)
        x, y = [p.x for p in line.points], [p.y for p in line.points]
        whiskers = [[p.y - p.low for p in line.points], [p.high - p.y for p in line.points]]
        axes.errorbar(
            x, y, whiskers, color=look.colour, marker=look.marker, markersize=4.5, linewidth=1.6, elinewidth=0.8,
            linestyle="--" if look.dashed else "-", label=line.name,
        )  # fmt: skip
        at = low * (high / low) ** end
        name = x[-1] * math.exp(0.06 * span)
        axes.plot([x[-1], name], [y[-1], at], color=look.colour, linewidth=0.5, alpha=0.7)
        axes.text(name, at, f" {line.name}", color=look.colour, va="center", size=8, clip_on=False)


def spread(values: Items[float], least: float) -> list[float]:
    """The same values, moved a little where neighbours are less than `least` apart; within 0 to 1 where they fit."""
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[tuple[float, list[int]]] = []  # (centre, members)
    for index in order:
        groups.append((values[index], [index]))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < least * (len(groups[-1][1]) + len(groups[-2][1])) / 2:
            members = groups[-2][1] + groups[-1][1]
            del groups[-2:]
            half = least * (len(members) - 1) / 2
            centre = sum(values[i] for i in members) / len(members)
            groups.append((max(min(centre, 1 - half), half), members))
    moved = list(values)
    for centre, members in groups:
        for place, index in enumerate(members):
            moved[index] = centre + least * (place - (len(members) - 1) / 2)
    return moved


def round_numbers(low: float, high: float) -> list[float]:
    """Ticks between two positive numbers: 1, 2 and 5 times powers of ten; more where those are few, fewer where not."""
    decades = math.log10(high / low)
    digits = (1, 1.5, 2, 3, 4, 5, 7) if decades < 1.1 else (1, 2, 5) if decades < 3.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**p for p in powers for digit in digits if low <= digit * 10.0**p <= high]


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its name ends with. An SVG also gets colours for dark pages."""
    if path.suffix != ".svg":
        figure.savefig(path, dpi=110)
        return
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in _IN_THE_DARK.items()
        for what in ("fill", "stroke")
    )
    head, tag, rest = text.getvalue().partition("<defs>")
    path.write_text(f"{head}<style>@media(prefers-color-scheme:dark){{{rules}}}</style>\n {tag}{rest}")
