"""Typed, bounded look-ups in a mapping that a stranger wrote, and reading such a mapping from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from opsocket.operators.errors import FormatError

T = TypeVar("T")


class Required:
    """Default of a look-up whose key the file must have."""


REQUIRED = Required()


class Keys:
    """A file's mapping under a prefix; every look-up checks type and range, and its FormatError names the full key.

    A key that is absent or null yields `default`, or is an error where there is none.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.prefix = prefix
        self._values = values

    def wrong(self, key: str, problem: str) -> FormatError:
        """The error to raise about `key`."""
        return FormatError(self.path, self.prefix + key, problem)

    def get(self, key: str) -> Any:
        """The raw value; None where absent."""
        return self._values.get(self.prefix + key)

    def integer(self, key: str, low: int, high: int, default: T | Required = REQUIRED) -> int | T:
        """An integer in low..high."""
        value = self.get(key)
        if value is None:
            return self._absent(key, "an integer", default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"wanted an integer in {low}..{high}, got {_show(value)}")
        return value

    def number(self, key: str, low: float, high: float, default: T | Required = REQUIRED) -> float | T:
        """A finite number in low..high."""
        value = self.get(key)
        if value is None:
            return self._absent(key, "a number", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(key, f"wanted a number in {low:g}..{high:g}, got {_show(value)}")
        return float(value)

    def flag(self, key: str, default: T | Required = REQUIRED) -> bool | T:
        """true or false."""
        value = self.get(key)
        if value is None:
            return self._absent(key, "true or false", default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"wanted true or false, got {_show(value)}")
        return value

    def text(self, key: str, default: T | Required = REQUIRED) -> str | T:
        """A string."""
        value = self.get(key)
        if value is None:
            return self._absent(key, "a string", default)
        if not isinstance(value, str):
            raise self.wrong(key, f"wanted a string, got {_show(value)}")
        return value

    def items(self, key: str, types: tuple[type, ...], default: list[Any] | Required = REQUIRED) -> list[Any]:
        """A list of values of these types (true and false count as neither int nor float)."""
        value = self.get(key)
        wanted = f"a list of {' or '.join(type.__name__ for type in types)}"
        if value is None:
            return self._absent(key, wanted, default)
        if not isinstance(value, list):
            raise self.wrong(key, f"wanted {wanted}, got {_show(value)}")
        for index, item in enumerate(value):
            if not isinstance(item, types) or isinstance(item, bool):
                raise self.wrong(key, f"wanted {wanted}, got {_show(item)} at {index}")
        return value

    def only(self, key: str, wanted: object, why: str) -> None:
        """The key is absent, null, or says `wanted`; anything else changes the model in a way that is not built."""
        value = self.get(key)
        if value is not None and value != wanted:
            raise self.wrong(key, f"{why}: wanted {wanted!r}, got {_show(value)}")

    def section(self, key: str) -> Keys | None:
        """The mapping at `key`, with errors that name key.inner; None where absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, f"wanted a mapping, got {_show(value)}")
        inner = f"{self.prefix}{key}."
        return Keys(self.path, {inner + str(name): item for name, item in value.items()}, inner)

    def _absent(self, key: str, what: str, default: T | Required) -> T:
        if isinstance(default, Required):
            raise self.wrong(key, f"wanted {what}, got nothing")
        return default


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file of at most `max_bytes`; FormatError on anything else."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise FormatError(path, "size", f"wanted at most {max_bytes} bytes, got {size}")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(path, "file", f"can't be read: {error.strerror}") from None
    except RecursionError:
        raise FormatError(path, "JSON", "nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise FormatError(path, "JSON", str(error)) from None
    if not isinstance(value, dict):
        raise FormatError(path, "JSON", f"wanted an object, got {_show(value)}")
    return value


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
