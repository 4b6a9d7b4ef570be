"""Reader of safetensors model files, single or sharded.

The `safetensors` package opens each file first and checks it in full: header, types, shapes, and that the tensors fill
the data section without gaps or overlap. Arrays are then views of the mapped file at the offsets it has checked, since
the package's NumPy side refuses bf16 and 8-bit floats, and copies the rest.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization.mapped_file import map_file

_MAX_JSON_BYTES = 16 << 20  # of a header or an index; a model of a thousand layers needs two

# Bit patterns where NumPy has no such type; booleans as the bytes they are, since a stray 2 is not a NumPy boolean.
_DTYPES: Mapping[str, tuple[str, np.dtype[Any]]] = {
    "F64": ("f64", np.dtype("<f8")),
    "F32": ("f32", np.dtype("<f4")),
    "F16": ("f16", np.dtype("<f2")),
    "BF16": ("bf16", np.dtype("<u2")),
    "F8_E4M3": ("f8e4m3fn", np.dtype("u1")),
    "F8_E5M2": ("f8e5m2", np.dtype("u1")),
    "I64": ("i64", np.dtype("<i8")),
    "I32": ("i32", np.dtype("<i4")),
    "I16": ("i16", np.dtype("<i2")),
    "I8": ("i8", np.dtype("i1")),
    "U64": ("u64", np.dtype("<u8")),
    "U32": ("u32", np.dtype("<u4")),
    "U16": ("u16", np.dtype("<u2")),
    "U8": ("u8", np.dtype("u1")),
    "BOOL": ("bool", np.dtype("u1")),
}


@dataclass(frozen=True, eq=False)
class _Tensor:
    dtype: str
    array: npt.NDArray[Any]


class SafetensorsFile:
    """The tensors of one model, by name, wherever its shards keep them."""

    def __init__(self, path: str, tensors: dict[str, _Tensor]) -> None:
        self.path = path
        self._tensors = tensors

    def names(self) -> tuple[str, ...]:
        """The names of all tensors, in the file's order."""
        return tuple(self._tensors)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Read-only view of the file's bytes. bf16 comes as uint16, fp8 and bool as uint8: see `dtype`."""
        return self._tensor(name).array

    def dtype(self, name: str) -> str:
        """``f32``, ``bf16``, ``f8e4m3fn``, ``i8``, ...: what the array's bits mean."""
        return self._tensor(name).dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._tensor(name).array.shape

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise ContractError("name", f"one of the {len(self._tensors)} tensors of {self.path}", repr(name))
        return self._tensors[name]


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open one file, an index, or a folder that holds ``model.safetensors.index.json`` or ``model.safetensors``.

    Raises FormatError, with the place and the problem, for anything out of order.
    """
    path = Path(path)
    if path.is_dir():
        index, single = path / "model.safetensors.index.json", path / "model.safetensors"
        if not index.exists() and not single.exists():
            raise FormatError(path, "folder", f"holds neither {single.name} nor {index.name}")
        path = index if index.exists() else single
    tensors = _open_shards(path) if path.name.endswith(".index.json") else _open_file(path)
    return SafetensorsFile(str(path), tensors)


def _open_shards(index_path: Path) -> dict[str, _Tensor]:
    buffer = map_file(index_path)
    index = _parse_json(index_path, "index", buffer, 0, len(buffer))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise FormatError(index_path, "index", "has no weight_map of tensor names to file names")
    shards: dict[str, dict[str, _Tensor]] = {}
    tensors: dict[str, _Tensor] = {}
    for name, file_name in weight_map.items():
        where = f"weight_map {name!r}"
        if not isinstance(file_name, str) or not file_name.endswith(".safetensors") or set(file_name) & set("/\\:\0"):
            raise FormatError(index_path, where, f"{file_name!r} is not the name of a safetensors file in this folder")
        if file_name not in shards:
            shards[file_name] = _open_file(index_path.parent / file_name)
        if name not in shards[file_name]:
            raise FormatError(index_path, where, f"{file_name} has no such tensor")
        tensors[name] = shards[file_name][name]
    return tensors


def _open_file(path: Path) -> dict[str, _Tensor]:
    buffer = map_file(path)
    length = int.from_bytes(buffer[:8], "little")
    if length > min(len(buffer) - 8, _MAX_JSON_BYTES):
        raise FormatError(path, "header", f"claims {length} bytes, in a file of {len(buffer)}")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(path, "header", str(error)) from error
    header = _parse_json(path, "header", buffer, 8, 8 + length)
    header.pop("__metadata__", None)
    return {name: _map_tensor(path, name, entry, buffer, 8 + length) for name, entry in header.items()}


def _map_tensor(path: Path, name: str, entry: dict[str, Any], buffer: mmap.mmap, data_start: int) -> _Tensor:
    where = f"tensor {name!r}"
    if entry["dtype"] not in _DTYPES:
        raise FormatError(path, where, f"dtype {entry['dtype']}; dtypes that can be read: {', '.join(_DTYPES)}")
    dtype, stored = _DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    try:
        array = np.frombuffer(buffer, stored, (end - begin) // stored.itemsize, data_start + begin)
        return _Tensor(dtype, array.reshape(entry["shape"]))
    except ValueError as error:
        raise FormatError(path, where, str(error)) from error


def _parse_json(path: Path, where: str, buffer: mmap.mmap, start: int, end: int) -> Any:
    """The JSON in buffer[start:end]; a name twice in one object is an error, not the last one's victory."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique_pairs = dict(pairs)
        if len(unique_pairs) != len(pairs):
            raise FormatError(path, where, "names something twice")
        return unique_pairs

    if end - start > _MAX_JSON_BYTES:
        raise FormatError(path, where, f"has {end - start} bytes; at most {_MAX_JSON_BYTES} are read")
    try:
        return json.loads(buffer[start:end], object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, where, f"not JSON: {error}") from error
