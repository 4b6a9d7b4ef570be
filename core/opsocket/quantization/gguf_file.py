"""Reader of GGUF model files, versions 2 and 3, little-endian, as ggml's ``docs/gguf.md`` describes them.

The header is walked here, every length checked against the bytes that are left before anything is read or allocated;
tensor data is memory-mapped. The `gguf` package gives the constants (magic, value types, block sizes) but not the
reader: its GGUFReader trusts every count in the file (an array claimed to have 2^60 elements keeps it busy for good,
a truncated file gives it short arrays) and, making an array object of every vocabulary string, takes seconds over the
48,900 merges of a small model where this takes a tenth of one. The tests hold the two to the same answers.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization.bfloat16 import bf16_to_f32
from opsocket.quantization.formats import DTYPES, QuantFormat, WeightTensor, get_format
from opsocket.quantization.mapped_file import map_file

Value = bool | int | float | str | list["Value"]
ValueType = gguf.GGUFValueType

# Far above any real model; they bound what a hostile file can make a reader hold.
_MAX_HEADER_BYTES = 64 << 20
_MAX_PAIRS = _MAX_TENSORS = 1 << 17
_MAX_ARRAY_VALUES = 4 << 20  # over all arrays of the file
_MAX_ARRAY_DEPTH = 4
_VALUES_PER_INNER_ARRAY = 64  # what one more list counts for
_MAX_KEY_BYTES = 65535
_MAX_NAME_BYTES = 255
_MAX_DIMENSIONS = 4

_MIN_PAIR_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

_SCALARS: Mapping[int, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("<u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

_FORMATS: Mapping[int, QuantFormat] = {
    gguf.GGMLQuantizationType[id.upper()]: get_format(id)
    for id in (
        *("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
        *("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs", "mxfp4"),
    )
}


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """One tensor of the file. `data` is a read-only view of the file's bytes.

    shape: in elements, NumPy's order, rows first. data: f32, f16, or bf16 as uint16, of that shape; or u8
    [..., bytes per row] for a quantized format.
    """

    name: str
    shape: tuple[int, ...]
    format: QuantFormat
    data: npt.NDArray[Any]

    def weight(self, expert: int | None = None) -> WeightTensor:
        """The tensor as a weight [N, K], or that of one expert of a tensor [E, N, K]. ContractError unless it has these
        dimensions, and the expert."""
        if len(self.shape) != (2 if expert is None else 3):
            want = "a tensor of two dimensions, [N, K]" if expert is None else "a tensor of three dimensions, [E, N, K]"
            raise ContractError(self.name, want, list(self.shape))
        if expert is not None and not 0 <= expert < self.shape[0]:
            raise ContractError("expert", f"0 to {self.shape[0] - 1}", expert)
        name = "weight" if self.format.is_float else "blocks"
        data = self.data if expert is None else self.data[expert]
        return WeightTensor(self.format, self.shape[-2], self.shape[-1], {name: data})

    def array(self) -> npt.NDArray[np.float32]:
        """The tensor as f32, any shape (norms, biases). ContractError for a quantized one: that is a `weight`."""
        if not self.format.is_float:
            raise ContractError(self.name, "f32, f16 or bf16", self.format.id)
        return bf16_to_f32(self.data) if self.format.id == "bf16" else self.data.astype(np.float32)


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """An open file: its metadata (scalars, strings, lists), and its tensors by name, in the file's order."""

    path: str
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GGUFTensor]


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the header and map the tensors. FormatError, with the place and the problem, for anything out of order."""
    header = _Header(os.fspath(path), map_file(path))
    tensor_count, pair_count = header.preamble()
    metadata = header.metadata(pair_count)
    entries = header.tensor_entries(tensor_count)
    tensors = _map_tensors(header, entries, _alignment(header, metadata))
    return GGUFFile(header.path, metadata, tensors)


@dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    format: QuantFormat
    offset: int  # from the start of the data section
    bytes: int


class _Header:
    """A cursor over the header. Nothing is read before `_claim` has seen that it is there."""

    def __init__(self, path: str, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0
        self._limit = min(self.size, _MAX_HEADER_BYTES)
        self._values_left = _MAX_ARRAY_VALUES

    def error(self, where: str, problem: str) -> FormatError:
        return FormatError(self.path, where, problem)

    def preamble(self) -> tuple[int, int]:
        """Check magic and version; the counts of tensors and of metadata pairs."""
        start = self._claim(24, "preamble")
        magic, version, tensor_count, pair_count = struct.unpack_from("<IIQQ", self.buffer, start)
        if magic != gguf.GGUF_MAGIC:
            raise self.error("preamble", f"the magic is {self.buffer[:4]!r}, not b'GGUF'")
        if version not in (2, 3):
            big_endian = " (a big-endian file)" if version in (2 << 24, 3 << 24) else ""
            raise self.error("preamble", f"version {version}{big_endian}; versions 2 and 3 can be read")
        self._check_count("metadata count", pair_count, _MIN_PAIR_BYTES, _MAX_PAIRS)
        self._check_count("tensor count", tensor_count, _MIN_TENSOR_BYTES, _MAX_TENSORS)
        return tensor_count, pair_count

    def metadata(self, count: int) -> dict[str, Value]:
        pairs: dict[str, Value] = {}
        for index in range(count):
            key = self._string(f"metadata key {index}", _MAX_KEY_BYTES)
            if not key or key in pairs:
                raise self.error(f"metadata key {index}", f"{key!r} is a duplicate" if key else "empty")
            where = f"metadata {key!r}"
            pairs[key] = self._value(self._number("<I", where), where, 0)
        return pairs

    def tensor_entries(self, count: int) -> list[_Entry]:
        entries: dict[str, _Entry] = {}
        for index in range(count):
            name = self._string(f"name of tensor {index}", _MAX_NAME_BYTES)
            if not name or name in entries:
                raise self.error(f"name of tensor {index}", f"{name!r} is a duplicate" if name else "empty")
            entries[name] = self._tensor_entry(name)
        return list(entries.values())

    def _tensor_entry(self, name: str) -> _Entry:
        where = f"tensor {name!r}"
        rank = self._number("<I", where)
        if not 1 <= rank <= _MAX_DIMENSIONS:
            raise self.error(where, f"{rank} dimensions, not 1 to {_MAX_DIMENSIONS}")
        start = self._claim(8 * rank, where)
        shape = struct.unpack_from(f"<{rank}Q", self.buffer, start)[::-1]
        type_id = self._number("<I", where)
        offset = self._number("<Q", where)
        format = _FORMATS.get(type_id)
        if format is None:
            known = ", ".join(format.id for format in _FORMATS.values())
            raise self.error(where, f"ggml type {_type_name(type_id)}; types that can be read: {known}")
        elements = math.prod(shape)
        if not 1 <= elements < 1 << 63:
            raise self.error(where, f"shape {list(shape)} has {elements} elements")
        block, block_bytes = gguf.GGML_QUANT_SIZES[type_id]
        if shape[-1] % block:
            raise self.error(
                where, f"rows of {shape[-1]} elements are no whole number of {format.id} blocks of {block}"
            )
        return _Entry(name, shape, format, offset, elements // block * block_bytes)

    def _value(self, type_id: int, where: str, depth: int) -> Value:
        if type_id == ValueType.STRING:
            return self._string(where)
        if type_id == ValueType.ARRAY:
            return self._array(where, depth)
        return self._scalars(type_id, 1, where)[0]

    def _array(self, where: str, depth: int) -> list[Value]:
        if depth == _MAX_ARRAY_DEPTH:
            raise self.error(where, f"arrays nested more than {_MAX_ARRAY_DEPTH} deep")
        type_id = self._number("<I", where)
        count = self._number("<Q", where)
        self._values_left -= count * (_VALUES_PER_INNER_ARRAY if type_id == ValueType.ARRAY else 1)
        if self._values_left < 0:
            raise self.error(where, f"an array of {count} values; all arrays together may have {_MAX_ARRAY_VALUES}")
        if type_id == ValueType.STRING:
            self._check_count(where, count, 8)
            return self._strings(count, where)
        if type_id == ValueType.ARRAY:
            self._check_count(where, count, 12)
            return [self._array(where, depth + 1) for _ in range(count)]
        return self._scalars(type_id, count, where)

    def _scalars(self, type_id: int, count: int, where: str) -> list[Value]:
        dtype = _SCALARS.get(type_id)
        if dtype is None:
            raise self.error(where, f"value type {type_id} does not exist")
        start = self._claim(count * dtype.itemsize, where)
        values = np.frombuffer(self.buffer, dtype, count, start)
        if type_id == ValueType.BOOL:
            if values.max(initial=0) > 1:
                raise self.error(where, f"a boolean of {values.max()}")
            values = values.astype(np.bool_)
        python_values: list[Value] = values.tolist()
        return python_values

    def _string(self, where: str, longest: int = _MAX_HEADER_BYTES) -> str:
        length = self._number("<Q", where)
        if length > longest:
            raise self.error(where, f"a string of {length} bytes; at most {longest} are allowed")
        start = self._claim(length, where)
        try:
            return self.buffer[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self.error(where, f"not UTF-8: {error.reason} at byte {error.start}") from error

    def _strings(self, count: int, where: str) -> list[Value]:
        """As `_string` reads them one by one, of which a vocabulary has hundreds of thousands."""
        buffer, limit, length_at = self.buffer, self._limit, struct.Struct("<Q").unpack_from
        strings: list[Value] = []
        for _ in range(count):
            begin = self.position + 8
            end = begin + length_at(buffer, self.position)[0] if begin <= limit else limit + 1
            if end > limit or end - begin > _MAX_HEADER_BYTES:
                strings.append(self._string(where))  # which says what is wrong
                continue
            try:
                strings.append(buffer[begin:end].decode())
            except UnicodeDecodeError:
                strings.append(self._string(where))
                continue
            self.position = end
        return strings

    def _number(self, layout: str, where: str) -> int:
        start = self._claim(4 if layout == "<I" else 8, where)
        number: int = struct.unpack_from(layout, self.buffer, start)[0]
        return number

    def _claim(self, length: int, where: str) -> int:
        start = self.position
        if length > self._limit - start:
            raise self.error(where, f"{length} bytes at {start} reach past the end at {self._limit}")
        self.position = start + length
        return start

    def _check_count(self, where: str, count: int, least_bytes: int, most: int = _MAX_ARRAY_VALUES) -> None:
        left = self._limit - self.position
        if count > min(most, left // least_bytes):
            raise self.error(where, f"a count of {count}; {most} are allowed, {left // least_bytes} fit into the file")


def _type_name(type_id: int) -> str:
    try:
        return f"{gguf.GGMLQuantizationType(type_id).name} ({type_id})"
    except ValueError:
        return f"{type_id}, which does not exist"


def _alignment(header: _Header, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get(gguf.Keys.General.ALIGNMENT, gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise header.error(gguf.Keys.General.ALIGNMENT, f"{alignment!r} is not a power of two")
    return alignment


def _map_tensors(header: _Header, entries: list[_Entry], alignment: int) -> dict[str, GGUFTensor]:
    data_start = -(-header.position // alignment) * alignment
    end, before = 0, "the header"
    for entry in sorted(entries, key=lambda entry: entry.offset):
        where = f"tensor {entry.name!r}"
        if entry.offset % alignment:
            raise header.error(where, f"offset {entry.offset} is not a multiple of the alignment, {alignment}")
        if entry.offset < end:
            raise header.error(where, f"offset {entry.offset} lies inside {before}, which ends at {end}")
        end, before = entry.offset + entry.bytes, where
        if data_start + end > header.size:
            raise header.error(where, f"data ends at byte {data_start + end} of a file of {header.size}")
    return {entry.name: _map_tensor(header.buffer, entry, data_start + entry.offset) for entry in entries}


def _map_tensor(buffer: mmap.mmap, entry: _Entry, start: int) -> GGUFTensor:
    if entry.format.is_float:
        dtype, stored_shape = DTYPES[entry.format.id], entry.shape
    else:
        row_bytes = entry.bytes // math.prod(entry.shape[:-1])
        dtype, stored_shape = DTYPES["u8"], (*entry.shape[:-1], row_bytes)
    data = np.frombuffer(buffer, dtype, entry.bytes // dtype.itemsize, start).reshape(stored_shape)
    return GGUFTensor(entry.name, entry.shape, entry.format, data)
