"""Which sizes of a kernel's pieces were measured to be fastest on a chip: chosen here, kept in a file, taken by plans.

Measuring belongs to `opsocket tune`, on the chip itself, never to a run: a plan looks up what was kept when it is made.
One file for each device (`opsocket.runtime.kept`); a version is one of this package and of Triton.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import triton

import opsocket
from opsocket.operators import DeviceInfo, FormatError
from opsocket.runtime import kept

Choice = TypeVar("Choice")
Kept = dict[str, dict[str, list[int]]]
"""`Request.work` -> most rows -> the numbers of a choice."""

MARGIN: Final = 0.03
"""By how much less time another than the default has to take: less is within what one measurement differs from the
next, and the default is what was compiled and looked at for every architecture."""
_SAMPLES: Final = 7


def fastest(default: Choice, others: Sequence[Choice], seconds: Callable[[Choice], float]) -> Choice:
    """The choice whose median of several measurements is least, all measured in turn; the default, unless another is
    faster by `MARGIN`. One that can't be measured (too much on-chip memory) is out; so is all else where the default
    can't be."""
    able = [default]
    for choice in others:
        if choice != default and _runs(choice, seconds):
            able.append(choice)
    samples: list[list[float]] = [[] for _ in able]
    for _ in range(_SAMPLES):
        for index, choice in enumerate(able):
            samples[index].append(seconds(choice))
    medians = [statistics.median(each) for each in samples]
    best = min(range(len(able)), key=medians.__getitem__)
    return able[best] if medians[best] < (1 - MARGIN) * medians[0] else default


def _runs(choice: Choice, seconds: Callable[[Choice], float]) -> bool:
    try:
        seconds(choice)
    except Exception:  # on-chip memory, the compiler; what is wrong with the clock, the default raises
        return False
    return True


def path(device: DeviceInfo) -> Path:
    """Where what was measured on a device is kept: $XDG_CACHE_HOME/opsocket/tiles/."""
    return kept.path("tiles", device)


def load(device: DeviceInfo) -> Kept:
    """All that was kept for a device; empty where nothing was. `FormatError` for a file that is not ours."""
    file = path(device)
    tiles: Kept = kept.load(file, "tiles", "choices", _version())
    for work, by_rows in tiles.items():
        if not isinstance(by_rows, dict) or not all(map(_is_numbers, by_rows.values())):
            raise FormatError(file, f"tiles[{work!r}]", "wanted lists of numbers by rows")
    return tiles


def save(device: DeviceInfo, work: str, by_rows: Mapping[str, Sequence[int]]) -> Path:
    """Keep the choices for a piece of work, beside those of others; returns the file."""
    file = path(device)
    tiles = load(device) | {work: {rows: list(numbers) for rows, numbers in by_rows.items()}}
    kept.save(file, {"version": _version(), "tiles": tiles})
    return file


def _version() -> str:
    return f"opsocket {opsocket.__version__}, triton {triton.__version__}"


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value > 0 for value in values)
