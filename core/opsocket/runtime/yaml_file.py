"""A YAML file as plain data with the position of everything in it. For files from anybody.

Bounded: 64 KiB, 8 levels. Anchors and aliases are refused, because a few lines of them unfold into gigabytes; so are
tags, because a configuration has no use for them, and a key that stands twice, because one of the two is a mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from opsocket.operators import FormatError

MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 8
_PLAIN: Final = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}

Place = tuple[str | int, ...]
"""Keys and indices from the top of the document."""


class Position(NamedTuple):
    """As people count: from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


class Document(NamedTuple):
    """keys, values: the position of each key, and of each value, by its place."""

    path: Path
    data: Any
    keys: dict[Place, Position]
    values: dict[Place, Position]

    def error(self, place: Place, problem: str, *, at_key: bool = False) -> FormatError:
        """`FormatError` at the line and column of a place, or of the nearest place above that has one."""
        positions = self.keys if at_key else self.values
        while place and place not in positions:
            place = place[:-1]
        return FormatError(self.path, str(positions.get(place, Position(1, 1))), problem)

    def origin(self, place: Place) -> str:
        """path:line:column of a value."""
        position = self.values[place]
        return f"{self.path}:{position.line}:{position.column}"


def read_yaml(path: Path) -> Document:
    """Read a file; `FormatError` names the line and column of whatever is wrong. An empty file is an empty mapping."""
    document = Document(path, None, {}, {})
    root = _compose(path, _text(path))
    data = None if root is None else _plain(root, (), document)
    return document._replace(data={} if data is None else data)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FormatError(path, "file", f"can't be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise FormatError(path, "file", f"is larger than the {MAX_BYTES} bytes that a configuration may have")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FormatError(path, f"line {line}", "is not UTF-8 text") from None


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        _check_events(path, text)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise FormatError(path, str(_position(mark)), f"is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise FormatError(path, "file", f"is not YAML: {' '.join(str(error).split())}") from None


def _position(mark: Any) -> Position:
    return Position(1, 1) if mark is None else Position(mark.line + 1, mark.column + 1)


def _check_events(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        problem = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "anchors and aliases are not taken here: write the value out"
        elif getattr(event, "tag", None) is not None:
            problem = "tags are not taken here: write the value plainly"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                problem = f"is nested deeper than {MAX_DEPTH} levels"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if problem:
            raise FormatError(path, str(_position(event.start_mark)), problem)


def _plain(node: yaml.Node, place: Place, document: Document) -> Any:
    document.values[place] = _position(node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document)
    if node.tag not in _PLAIN:
        raise document.error(place, f"YAML reads this as a {node.tag.rpartition(':')[2]}: write it in quotes")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*place, i), document) for i, item in enumerate(node.value)]
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, KeyError, yaml.YAMLError) as error:
        raise document.error(place, f"is no {node.tag.rpartition(':')[2]}: {error}") from None


def _mapping(node: yaml.MappingNode, place: Place, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        position = _position(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            raise FormatError(document.path, str(position), "a key must be plain text")
        key = key_node.value
        if key in result:
            first = document.keys[(*place, key)]
            raise FormatError(document.path, str(position), f"key {key!r} stands twice, first at {first}")
        document.keys[(*place, key)] = position
        result[key] = _plain(value_node, (*place, key), document)
    return result
