"""Frozen dataclasses to plain JSON values and back, without loss and without surprises.

Only what requests are made of: dataclasses, tuples, str, int, float, bool, None and unions of these. Unknown and
missing keys and wrong types are `ContractError`s that name the path, because requests are read from traces, reports
and command lines that strangers wrote.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Hashable
from typing import Any, TypeVar

from opsocket.operators.errors import ContractError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """A value of dataclasses and plain types as JSON-ready dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ContractError("value", "a dataclass, tuple or plain scalar", type(value).__name__)


def decode(cls: type[T], data: Any, path: str = "") -> T:
    """The inverse of `encode` for dataclass `cls`."""
    name = path or cls.__name__
    if not isinstance(data, dict):
        raise ContractError(name, f"an object of {cls.__name__}", repr(data))
    hints = _hints(typing.cast(Hashable, cls))
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    if unknown := sorted(set(data) - set(fields)):
        raise ContractError(f"{name}.{unknown[0]}", f"one of {sorted(fields)}", "an unknown key")
    values = {}
    for key, field in fields.items():
        if key in data:
            values[key] = _decode_as(hints[key], data[key], f"{name}.{key}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ContractError(f"{name}.{key}", "a value", "nothing")
    return cls(**values)


@functools.cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode_as(hint: Any, data: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        for option in options[:-1]:
            try:
                return _decode_as(option, data, path)
            except ContractError:
                continue
        return _decode_as(options[-1], data, path)
    if origin is typing.Literal:
        if data not in args:
            raise ContractError(path, f"one of {list(args)}", repr(data))
        return data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise ContractError(path, "a list", repr(data))
        item_hints = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(item_hints) != len(data):
            raise ContractError(path, f"{len(item_hints)} items", f"{len(data)}")
        return tuple(_decode_as(h, d, f"{path}[{i}]") for i, (h, d) in enumerate(zip(item_hints, data, strict=True)))
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), data, path)
    return _scalar(hint, data, path)


def _scalar(hint: Any, data: Any, path: str) -> Any:
    if hint is float and isinstance(data, int | float) and not isinstance(data, bool):
        if not math.isfinite(data):
            raise ContractError(path, "a finite number", repr(data))
        return float(data)
    if type(data) is not hint:
        raise ContractError(path, hint.__name__, repr(data))
    return data
