"""What was found out about some objects, known by their identity, until one of them goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar
from weakref import ref

Value = TypeVar("Value")


class ByIdentity(Generic[Value]):
    """A value for each sequence of objects: the same objects in the same order have the same value."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], tuple[Value, list[ref[Any]]]] = {}

    def get(self, objects: Sequence[object]) -> Value | None:
        """What `put` was given for them; None where they are others."""
        found = self._found.get(tuple(map(id, objects)))
        return None if found is None else found[0]

    def put(self, objects: Sequence[object], value: Value) -> None:
        """Remember a value while all of the objects live; it must hold none of them."""
        key, found = tuple(map(id, objects)), self._found

        def forget(_: ref[Any]) -> None:
            found.pop(key, None)

        # Before another object can have the same identity.
        found[key] = value, [ref(one, forget) for one in objects]
