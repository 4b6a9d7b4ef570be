"""Entry points of a group, even where some distribution's metadata is broken. Imports nothing of a plugin."""

from __future__ import annotations

from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import NamedTuple


class Entries(NamedTuple):
    """found: the group's entry points. unreadable: for distributions that seem to have some, name and what is wrong."""

    found: tuple[EntryPoint, ...]
    unreadable: tuple[tuple[str, str], ...] = ()


def installed(group: str) -> Entries:
    """The entry points of `group`, each distribution once (the first on the path hides the others)."""
    try:
        return Entries(tuple(entry_points(group=group)))
    except Exception:  # the standard reader gives up on everything because of one bad file: read them one by one
        return _one_by_one(group)


def _one_by_one(group: str) -> Entries:
    found: list[EntryPoint] = []
    unreadable: list[tuple[str, str]] = []
    seen: set[str] = set()
    for distribution in distributions():
        name = _name(distribution)
        if name in seen:
            continue
        seen.add(name)
        try:
            found.extend(distribution.entry_points.select(group=group))
        except Exception as error:
            if _may_mention(distribution, group):
                unreadable.append((name, f"entry_points.txt can't be read: {type(error).__name__}: {error}"))
    return Entries(tuple(found), tuple(unreadable))


def _may_mention(distribution: Distribution, group: str) -> bool:
    try:
        return group in (distribution.read_text("entry_points.txt") or "")
    except (OSError, UnicodeDecodeError):
        return True


def _name(distribution: Distribution) -> str:
    try:
        return distribution.name
    except Exception:
        return f"unnamed distribution at {distribution.locate_file('')}"
