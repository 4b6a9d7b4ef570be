"""Reports from strangers: read, and held against the published schema before anything believes a word of them.

The schema is one file, ``report.schema.json``; `Rules` understands the keywords that it uses, so that reading a report
needs no library for schemas. In two things it is stricter than one: an integer has no decimal point, and values that
may be anything hold nothing deeply nested.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from opsocket.operators import FormatError
from opsocket_conformance.report.text import clipped, printable

LARGEST: Final = 64 << 20
"""Bytes of the largest file that is read; a report of every case there is has some 3 MiB."""
_DEEPEST = 12

_Violation = tuple[str, str]
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


@cache
def schema() -> dict[str, Any]:
    """The published JSON schema of reports."""
    text = resources.files("opsocket_conformance").joinpath("report/report.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def load(path: str | Path) -> dict[str, Any]:
    """Read a report; `FormatError` names the first place where the file is not one."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise FormatError(path, "file", str(error)) from None
    if len(raw) > LARGEST:
        raise FormatError(path, "file", f"wanted at most {LARGEST} bytes")
    try:
        data = json.loads(
            raw.decode("utf-8"), parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_distinct
        )
    except RecursionError:
        raise FormatError(path, "file", "nested too deeply") from None
    except ValueError as error:
        raise FormatError(path, "file", printable(clipped(str(error), 300))) from None
    if isinstance(data, dict) and data.get("schema") != schema()["properties"]["schema"]["const"]:
        wanted = schema()["properties"]["schema"]["const"]
        raise FormatError(path, "schema", f"wanted a conformance report of schema {wanted}")
    for where, problem in Rules(schema()).violations(data):
        raise FormatError(path, where or "top level", problem)
    report: dict[str, Any] = data
    return report


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:30]} is beyond every float")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key comes twice: two readers could then read two reports out of one file."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


class Rules:
    """A JSON schema, as far as the report's own schema goes."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def violations(self, value: Any) -> Iterator[_Violation]:
        """Where a value breaks the schema, and how."""
        yield from self._check(value, self._root, "")

    def _check(self, value: Any, rule: dict[str, Any], where: str) -> Iterator[_Violation]:
        while "$ref" in rule:
            rule = self._root["$defs"][rule["$ref"].removeprefix("#/$defs/")]
        if not rule and _depth(value) > _DEEPEST:
            yield where, f"wanted at most {_DEEPEST} levels of nesting"
        if "const" in rule and (value != rule["const"] or isinstance(value, bool)):
            yield where, f"wanted {rule['const']}, got {_shown(value)}"
        if "enum" in rule and not (isinstance(value, str) and value in rule["enum"]):
            yield where, f"wanted one of {rule['enum']}, got {_shown(value)}"
        if "type" in rule and not _is_a(value, rule["type"]):
            yield where, f"wanted {rule['type']}, got {_shown(value)}"
        elif isinstance(value, str):
            yield from _string(value, rule, where)
        elif isinstance(value, (int, float)):
            yield from _number(value, rule, where)
        elif isinstance(value, list):
            yield from self._array(value, rule, where)
        elif isinstance(value, dict) and rule:
            yield from self._object(value, rule, where)

    def _array(self, value: list[Any], rule: dict[str, Any], where: str) -> Iterator[_Violation]:
        if len(value) > rule.get("maxItems", len(value)):
            yield where, f"wanted at most {rule['maxItems']} items, got {len(value)}"
        if "items" in rule:
            for index, item in enumerate(value):
                yield from self._check(item, rule["items"], f"{where}[{index}]")

    def _object(self, value: dict[str, Any], rule: dict[str, Any], where: str) -> Iterator[_Violation]:
        if len(value) > rule.get("maxProperties", len(value)):
            yield where, f"wanted at most {rule['maxProperties']} entries, got {len(value)}"
        needed = [*rule.get("required", ())]
        for key, others in rule.get("dependentRequired", {}).items():
            needed += others if key in value else ()
        for key in needed:
            if key not in value:
                yield where, f"wanted {key!r}, which is missing"
        properties, others = rule.get("properties", {}), rule.get("additionalProperties")
        for key, item in value.items():
            at = f"{where}.{printable(clipped(key, 60))}".removeprefix(".")
            if "propertyNames" in rule:
                yield from self._check(key, rule["propertyNames"], at)
            if key in properties:
                yield from self._check(item, properties[key], at)
            elif others is False:
                yield at, f"wanted one of {sorted(properties)}"
            elif others:
                yield from self._check(item, others, at)


def _is_a(value: Any, names: str | Sequence[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in ([names] if isinstance(names, str) else names)
    return any(isinstance(value, _TYPES[name]) for name in ([names] if isinstance(names, str) else names))


def _string(value: str, rule: dict[str, Any], where: str) -> Iterator[_Violation]:
    if len(value) > rule.get("maxLength", len(value)):
        yield where, f"wanted at most {rule['maxLength']} characters, got {len(value)}"
    elif "pattern" in rule and not re.search(rule["pattern"], value):
        yield where, f"wanted text like {rule['pattern']}, got {_shown(value)}"


def _number(value: float, rule: dict[str, Any], where: str) -> Iterator[_Violation]:
    if value < rule.get("minimum", value):
        yield where, f"wanted at least {rule['minimum']}, got {_shown(value)}"
    if value > rule.get("maximum", value):
        yield where, f"wanted at most {rule['maximum']}, got {_shown(value)}"


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted no further than matters."""
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return printable(clipped(repr(value), 100)).replace("\n", " ")
