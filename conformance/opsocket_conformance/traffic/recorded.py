"""The recorded calls, read from the package's own data file; every number in it is checked before it is used.

    {"schema": 1, "provenance": {...}, "requests": [request, ...],
     "calls": [{"request": index, "rows": rows of the first array, "arrays": {name: numbers}, "shapes": {name: shape}}]}

A request is `Request.to_json` with "$dtype" where the activations' type was. Arrays are the fields of the operator's
batch, and the arrays of indices that `run` takes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from opsocket.operators import ContractError, FormatError, Request
from opsocket_conformance.findings import Host

SCHEMA: Final = 1
_NAME: Final = "smollm2.json"
_MAX_BYTES, _MAX_CALLS, _MAX_NUMBERS = 1 << 20, 2000, 1 << 16
_PLACEHOLDER: Final = "$dtype"
_DTYPES: Final = {
    "positions": np.int64, "rows": np.int64, "slots": np.int64, "pairs": np.int64, "q_indptr": np.int32,
    "kv_lens": np.int32, "block_table": np.int32, "top_k": np.int32, "history_indptr": np.int64,
    "history_ids": np.int64, "history_counts": np.int32, "temperature": np.float32, "top_p": np.float32,
    "min_p": np.float32, "uniform": np.float32, "repetition": np.float32, "presence": np.float32,
    "frequency": np.float32,
}  # fmt: skip
"""Every array that a call may have, and its type."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """One call. rows: of its first array. arrays: of its batch, and of indices, by name."""

    template: str
    rows: int
    arrays: dict[str, Host]

    def request(self, dtype: str) -> Request:
        """What was asked, with activations (and a cache) of this type."""
        return Request.loads(self.template.replace(f'"{_PLACEHOLDER}"', json.dumps(dtype)))

    @property
    def op(self) -> str:
        return str(json.loads(self.template)["op"])


@cache
def recorded_calls() -> tuple[Recorded, ...]:
    """All calls of the package's recording, in its order."""
    with resources.as_file(resources.files("opsocket_conformance.traffic") / _NAME) as path:
        return load(path)


def load(path: Path) -> tuple[Recorded, ...]:
    """The calls of a recording; `FormatError` says where it is wrong."""
    if path.stat().st_size > _MAX_BYTES:
        raise FormatError(path, "file", f"more than {_MAX_BYTES} bytes")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(path, "file", f"no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise FormatError(path, "schema", f"wanted a recording of schema {SCHEMA}")
    requests, calls = (data.get(key) for key in ("requests", "calls"))
    if not isinstance(requests, list) or not isinstance(calls, list) or len(calls) > _MAX_CALLS:
        raise FormatError(path, "calls", f"wanted lists of requests and of at most {_MAX_CALLS} calls")
    templates = [_template(path, number, request) for number, request in enumerate(requests)]
    return tuple(_call(path, number, call, templates) for number, call in enumerate(calls))


def _template(path: Path, number: int, request: Any) -> str:
    text = json.dumps(request, sort_keys=True)
    try:
        Request.loads(text.replace(f'"{_PLACEHOLDER}"', '"f32"'))
    except ContractError as error:
        raise FormatError(path, f"requests[{number}]", str(error)) from None
    return text


def _call(path: Path, number: int, call: Any, templates: list[str]) -> Recorded:
    where = f"calls[{number}]"
    if not isinstance(call, dict) or not set(call) <= {"request", "rows", "arrays", "shapes"}:
        raise FormatError(path, where, "wanted an object of request, rows, arrays and shapes")
    index, rows = (call.get(key) for key in ("request", "rows"))
    if type(index) is not int or not 0 <= index < len(templates):
        raise FormatError(path, f"{where}.request", f"wanted 0 to {len(templates) - 1}, got {index!r}")
    if type(rows) is not int or not 0 <= rows <= _MAX_NUMBERS:
        raise FormatError(path, f"{where}.rows", f"wanted 0 to {_MAX_NUMBERS}, got {rows!r}")
    arrays, shapes = call.get("arrays", {}), call.get("shapes", {})
    if not isinstance(arrays, dict) or not isinstance(shapes, dict):
        raise FormatError(path, where, "wanted objects of arrays and of shapes")
    made = {name: _array(path, f"{where}.arrays.{name}", name, values, shapes) for name, values in arrays.items()}
    return Recorded(templates[index], rows, made)


def _array(path: Path, where: str, name: str, values: Any, shapes: dict[str, Any]) -> Host:
    if name not in _DTYPES:
        raise FormatError(path, where, f"wanted one of {sorted(_DTYPES)}")
    numbers = (int,) if np.issubdtype(_DTYPES[name], np.integer) else (int, float)
    if not isinstance(values, list) or len(values) > _MAX_NUMBERS or not all(type(v) in numbers for v in values):
        raise FormatError(path, where, f"wanted at most {_MAX_NUMBERS} numbers of type {_DTYPES[name].__name__}")
    if any(abs(v) >= 1 << 31 for v in values):
        raise FormatError(path, where, "wanted numbers below 2^31")
    shape = shapes.get(name, [len(values)])
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise FormatError(path, where, f"wanted a shape, got {shape!r}")
    if np.prod(shape, dtype=object) != len(values):
        raise FormatError(path, where, f"shape {shape} of {len(values)} numbers")
    return np.array(values, _DTYPES[name]).reshape(shape)
