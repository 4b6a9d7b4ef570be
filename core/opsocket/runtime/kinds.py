"""Kinds of configuration values: each checks data, reads text, and describes itself as JSON Schema.

The validator and the published schema both come from here, so they can't disagree.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

_LARGEST = 2**31 - 1


class Wrong(Exception):
    """A value is not of its kind. at: where below the value, as keys and indices. at_key: the key there is wrong."""

    def __init__(self, want: str, got: object, at: tuple[str | int, ...] = (), at_key: bool = False) -> None:
        super().__init__(f"wanted {want}, got {got!r}")
        self.want = want
        self.got = got
        self.at = at
        self.at_key = at_key


class Kind(ABC):
    """optional: whether null is a value too."""

    optional: bool = False

    @abstractmethod
    def check(self, value: object) -> Any:
        """The value as the program uses it, from plain data; `Wrong` where it is not of this kind."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """JSON Schema of what `check` takes."""

    def parse(self, text: str) -> Any:
        """The value in a variable or a flag."""
        return self.check(text)

    def read(self, value: object) -> Any:
        """A value from a program or a flag: text is parsed, anything else is checked."""
        return self.parse(value) if isinstance(value, str) else self.check(value)


@dataclass(frozen=True)
class Text(Kind):
    """Text that matches a pattern; `want` says in words what that means."""

    pattern: str
    want: str

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise Wrong(self.want, value)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^(?:{self.pattern})$"}


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few names. planned: names that a later version may take, and what to say until then."""

    names: tuple[str, ...]
    optional: bool = False
    planned: Mapping[str, str] = field(default_factory=dict)

    def check(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        if isinstance(value, str) and value in self.names:
            return value
        if isinstance(value, str) and value in self.planned:
            raise Wrong(f"{self._listed()} ({self.planned[value]})", value)
        raise Wrong(self._listed(), value)

    def _listed(self) -> str:
        return " or ".join(map(repr, self.names)) if len(self.names) < 3 else f"one of {', '.join(self.names)}"

    def schema(self) -> dict[str, Any]:
        return {"enum": [*self.names, *([None] if self.optional else [])]}


@dataclass(frozen=True)
class Count(Kind):
    """A whole number of at least 1, or null."""

    optional: bool = True

    def check(self, value: object) -> int | None:
        if value is None and self.optional:
            return None
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, int | float) or not whole or not 1 <= value <= _LARGEST:
            raise Wrong("a whole number of at least 1", value)
        return int(value)

    def parse(self, text: str) -> int | None:
        if not re.fullmatch(r"[0-9]{1,12}", text):
            raise Wrong("a whole number of at least 1", text)
        return self.check(int(text))

    def schema(self) -> dict[str, Any]:
        kind: dict[str, Any] = {"type": ["integer", "null"] if self.optional else "integer"}
        return {**kind, "minimum": 1, "maximum": _LARGEST}


@dataclass(frozen=True)
class Flag(Kind):
    """true or false, or null."""

    optional: bool = True

    def check(self, value: object) -> bool | None:
        if isinstance(value, bool) or (value is None and self.optional):
            return value
        raise Wrong("true or false", value)

    def parse(self, text: str) -> bool | None:
        if text.lower() not in ("true", "false"):
            raise Wrong("true or false", text)
        return text.lower() == "true"

    def schema(self) -> dict[str, Any]:
        return {"type": ["boolean", "null"] if self.optional else "boolean"}


@dataclass(frozen=True)
class Names(Kind):
    """A list of names, or null; as text separated by commas, "none" for the empty list."""

    optional: bool = True

    def check(self, value: object) -> tuple[str, ...] | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, list | tuple):
            raise Wrong("a list of names", value)
        for i, item in enumerate(value):
            if not isinstance(item, str) or not item:
                raise Wrong("a name", item, (i,))
        return tuple(value)

    def parse(self, text: str) -> tuple[str, ...] | None:
        from opsocket.plugins.discovery import parse_allow

        return parse_allow(text)

    def schema(self) -> dict[str, Any]:
        kind = ["array", "null"] if self.optional else "array"
        return {"type": kind, "items": {"type": "string", "minLength": 1}}


@dataclass(frozen=True)
class Table(Kind):
    """From each of some keys to a value of one kind; as text "key=value,key=value"."""

    keys: tuple[str, ...]
    values: Kind

    def check(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Wrong("a mapping", value)
        checked = {}
        for key, item in value.items():
            if key not in self.keys:
                raise Wrong(f"one of {', '.join(self.keys)}", key, (key,), at_key=True)
            try:
                checked[key] = self.values.check(item)
            except Wrong as wrong:
                raise Wrong(wrong.want, wrong.got, (key, *wrong.at)) from None
        return checked

    def parse(self, text: str) -> dict[str, Any]:
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        for key, equals, _ in pairs:
            if not equals:
                raise Wrong("key=value pairs separated by commas", key)
        return self.check({key.strip(): value.strip() for key, _, value in pairs})

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"enum": list(self.keys)},
            "additionalProperties": self.values.schema(),
        }


def nearest(value: str, names: Collection[str]) -> str | None:
    """The name that was probably meant."""
    return next(iter(difflib.get_close_matches(value, sorted(names), 1, 0.6)), None)


def unknown_key(key: str, names: Collection[str], of: str) -> str:
    """That a key (of a section) is unknown, with the one that was probably meant, or else all there are."""
    meant = nearest(key, names)
    there = f"known: {', '.join(sorted(names))}" if meant is None else f"did you mean {meant!r}?"
    return f"unknown key {key!r}{f' of {of!r}' if of else ''}; {there}"
