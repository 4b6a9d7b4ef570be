"""Covering arrays: few cases in which every combination of `strength` knobs occurs (AETG, Cohen et al. 1997; Kuhn,
Kacker and Lei 2010). Greedy, and without randomness, so that ids stay."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Choice = dict[str, Any]
Tuple = tuple[tuple[str, int], ...]


def cover(
    knobs: Mapping[str, Sequence[Any]],
    allowed: Callable[[Choice], bool] = lambda choice: True,
    strength: int = 2,
) -> list[Choice]:
    """Assignments of a value to every knob. `allowed` judges partial assignments too: False where no way of filling in
    the rest can help."""
    names = list(knobs)
    remaining: dict[Tuple, None] = {}
    for group in itertools.combinations(names, strength):
        for values in itertools.product(*(range(len(knobs[name])) for name in group)):
            partial = dict(zip(group, values, strict=True))
            if allowed(_values(knobs, partial)):
                remaining[tuple(partial.items())] = None
    rows: list[Choice] = []
    while remaining:
        seed = next(iter(remaining))
        row = _fill(knobs, names, dict(seed), remaining, allowed, strength)
        if row is None:
            del remaining[seed]  # allowed by itself, but nothing completes it
            continue
        for group in itertools.combinations(names, strength):
            remaining.pop(tuple((name, row[name]) for name in group), None)
        rows.append(_values(knobs, row))
    return rows


def _values(knobs: Mapping[str, Sequence[Any]], row: Mapping[str, int]) -> Choice:
    return {name: knobs[name][index] for name, index in row.items()}


def _fill(
    knobs: Mapping[str, Sequence[Any]],
    names: Sequence[str],
    row: dict[str, int],
    remaining: Mapping[Tuple, None],
    allowed: Callable[[Choice], bool],
    strength: int,
) -> dict[str, int] | None:
    """Each free knob takes the allowed value that covers most of what remains; values take turns where none does."""
    for name in names:
        if name in row:
            continue
        best, best_gain = None, (-1, 0)
        count = len(knobs[name])
        for index in range(count):
            trial = {**row, name: index}
            if not allowed(_values(knobs, trial)):
                continue
            gain = _gain(names, trial, name, remaining, strength)
            turn = -((index + len(remaining)) % count)
            if (gain, turn) > best_gain or best is None:
                best, best_gain = index, (gain, turn)
        if best is None:
            return None
        row[name] = best
    return row


def _gain(
    names: Sequence[str], row: Mapping[str, int], new: str, remaining: Mapping[Tuple, None], strength: int
) -> int:
    """How many remaining combinations the new knob's value completes."""
    others = [name for name in names if name in row and name != new]
    gain = 0
    for group in itertools.combinations(others, strength - 1):
        chosen = {*group, new}
        gain += tuple((name, row[name]) for name in names if name in chosen) in remaining
    return gain


def coverage(
    rows: Sequence[Mapping[str, Any]],
    knobs: Mapping[str, Sequence[Any]],
    allowed: Callable[[Choice], bool] = lambda choice: True,
    strength: int = 2,
) -> tuple[int, int]:
    """Combinations of `strength` knob values that occur in `rows`, and those that there are."""
    have: set[tuple[tuple[str, Any], ...]] = set()
    groups = list(itertools.combinations(knobs, strength))
    for row in rows:
        known = {name for name in knobs if name in row and row[name] in knobs[name]}
        have.update(tuple((name, row[name]) for name in group) for group in groups if known.issuperset(group))
    there_are = 0
    for group in groups:
        for values in itertools.product(*(knobs[name] for name in group)):
            there_are += allowed(dict(zip(group, values, strict=True)))
    return len(have), there_are
