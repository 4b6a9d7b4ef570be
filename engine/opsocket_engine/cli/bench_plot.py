"""The plot of `opsocket bench --plot`: decode speed against context and against batch."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from opsocket_engine.figures import Line, Panel, Point, curves, save


def draw(report: dict[str, Any], path: Path) -> None:
    """report: as `opsocket bench --json` prints it. OSError where the file can't be written."""
    contexts: dict[int, list[Point]] = defaultdict(list)
    batches: dict[int, list[Point]] = defaultdict(list)
    for row in sorted(report["decodes"], key=lambda row: (row["start"], row["batch"])):
        batch, start = row["batch"], max(row["start"], 1)  # a sequence has one token before it can decode
        rates = row["tokens_per_second"]
        median, low, high = (1e3 * batch / rates[name] for name in ("median", "high", "low"))
        contexts[batch].append(Point(start, median, low, high))
        batches[start].append(Point(batch, rates["median"], rates["low"], rates["high"]))
    panels = [
        Panel("cost against context", "tokens in the cache", "milliseconds per decode step", _lines(contexts, "batch")),
        Panel("speed against batch", "sequences", "tokens per second, all sequences", _lines(batches, "context")),
    ]
    note = (
        f"{report['device_name']}, {report['threads']} threads; cache {report['kv_format']}; medians; whiskers: least "
        "and most"
    )
    save(curves(f"Decoding {Path(report['model']).name}", note, panels), path)


def _lines(found: dict[int, list[Point]], what: str) -> tuple[Line, ...]:
    return tuple(Line(f"{what} {number}", tuple(points)) for number, points in found.items())
