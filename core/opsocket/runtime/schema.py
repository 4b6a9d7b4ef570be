"""The configuration file as JSON Schema, from the same table that checks it."""

from __future__ import annotations

from typing import Any

from opsocket.runtime.config import options


def json_schema() -> dict[str, Any]:
    """Draft 2020-12. `opsocket.schema.json` beside this file is its text, for editors; a test keeps them equal."""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "opsocket.yaml",
        "description": "Configuration of opsocket.",
    } | _object()
    for option in options():
        *sections, name = option.key.split(".")
        at = root
        for section in sections:
            at = at["properties"].setdefault(section, _object())
        default = {} if option.default is None else {"default": option.default}
        at["properties"][name] = {"description": option.help, **option.kind.schema(), **default}
    return root


def _object() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "additionalProperties": False}
