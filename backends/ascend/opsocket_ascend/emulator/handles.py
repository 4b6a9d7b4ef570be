"""What aclnn calls are given, read out of `src/opapi.h`'s handles: tensors in device memory, lists, scalars.

Values are float64 for every float type and NumPy's own integers and booleans for the rest; a tensor rounds what is
written to it, once, to nearest even.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from opsocket_ascend.emulator.tiles import FRACTAL_NZ, ROW_BYTES, from_tiles, tiled_shape, to_tiles

_MOST_DIMENSIONS = 8
_MAGIC = 0x0950C4E7
_TENSOR, _TENSOR_LIST, _INTS, _FLOATS, _BOOLS, _SCALAR, _SCALAR_LIST = range(1, 8)
_PRIVATE_FORMATS = frozenset({3, 4, 29, 32, 33, 50, 51, 52, 53, 54})
"""Of aclFormat, those whose elements do not lie as strides say: FRACTAL_NZ (29) and its like."""


@dataclass(frozen=True)
class DType:
    """name: opsocket's. storage: NumPy's type of the bits; None: two codes in a byte, which no answer reads yet."""

    name: str
    storage: type[np.generic]


DTYPES: Final = {
    0: DType("f32", np.float32),
    1: DType("f16", np.float16),
    2: DType("i8", np.int8),
    3: DType("i32", np.int32),
    4: DType("u8", np.uint8),
    6: DType("i16", np.int16),
    7: DType("u16", np.uint16),
    8: DType("u32", np.uint32),
    9: DType("i64", np.int64),
    10: DType("u64", np.uint64),
    11: DType("f64", np.float64),
    12: DType("bool", np.bool_),
    27: DType("bf16", np.uint16),
    35: DType("f8e5m2", np.uint8),
    36: DType("f8e4m3fn", np.uint8),
}
"""By aclDataType."""

_FLOATS_BY_NAME: Final = ("f64", "f32", "f16", "bf16")


class EmulationError(RuntimeError):
    """Why a call is not answered: CANN would do something else than was meant, or the emulator does not know it."""


class _Handle(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("storage_dimensions", ctypes.c_int32),
        ("shape", ctypes.c_int64 * _MOST_DIMENSIONS),
        ("strides", ctypes.c_int64 * _MOST_DIMENSIONS),
        ("storage", ctypes.c_int64 * _MOST_DIMENSIONS),
        ("offset", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("values", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Tensor:
    """One aclTensor: address of its storage, and what of it is meant. strides and offset in elements."""

    dtype: DType
    format: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: tuple[int, ...]
    offset: int
    data: int
    memory: Any = field(repr=False, compare=False)

    def raw(self) -> np.ndarray:
        """The elements as they are stored, a view of device memory. Not of a tensor in a private format: `elements` is
        for the operators that are documented to read one."""
        item = itemsize(self.dtype)
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, self.dtype.storage)
        if self.format in _PRIVATE_FORMATS:
            raise EmulationError(f"a tensor in private format {self.format}: not emulated")
        span = 1 + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return as_strided(self._bytes(span), self.shape, [stride * item for stride in self.strides])

    def elements(self) -> np.ndarray:
        """The elements as they are stored, in the order of the shape: of a tensor in FRACTAL_NZ a copy."""
        if self.format != FRACTAL_NZ:
            return self.raw()
        tiles, base, transposed = self._tiled()
        values = from_tiles(tiles, base)
        return values.swapaxes(-1, -2) if transposed else values

    def put(self, elements: np.ndarray) -> None:
        """Elements as they are stored, put where the format has them."""
        if self.format != FRACTAL_NZ:
            self.raw()[...] = elements
            return
        tiles, _, transposed = self._tiled()
        tiles[...] = to_tiles(elements.swapaxes(-1, -2) if transposed else elements, tiles.shape[-1])

    def _tiled(self) -> tuple[np.ndarray, tuple[int, ...], bool]:
        """The tiles in device memory, the shape of the matrix that lies in them, and whether this is its transpose.
        Slices of tiles have no strides that would say so, and are refused."""
        dense = tuple(math.prod(self.shape[at + 1 :]) for at in range(len(self.shape)))
        *batch, rows, columns = self.shape
        across = (*dense[:-2], 1, rows)
        transposed = self.strides != dense
        base = (*batch, columns, rows) if transposed else self.shape
        if self.offset or self.strides not in (dense, across):
            raise EmulationError(f"{self}: a view of tiles that is neither all of them nor their transpose")
        item = itemsize(self.dtype)
        widths = (ROW_BYTES // item, *((16,) if item == 4 else ()))
        if self.storage not in [tiled_shape(base, width) for width in widths]:
            raise EmulationError(f"{self} in a storage of {self.storage}, which does not tile it")
        return self._bytes(math.prod(self.storage)).reshape(self.storage), base, transposed

    def _bytes(self, count: int) -> np.ndarray:
        """That many elements from the first on, a view of device memory."""
        item = itemsize(self.dtype)
        place = self.memory(self.data + self.offset * item, count * item)
        if not place:
            raise EmulationError(f"{self} reaches outside of its device allocation, or is not in device memory")
        return np.frombuffer((ctypes.c_char * (count * item)).from_address(place), self.dtype.storage)

    def value(self) -> np.ndarray:
        """A copy: float64 of floats, else the stored integers or booleans."""
        return widened(self.raw(), self.dtype)

    def weight(self) -> np.ndarray:
        """`value` of an argument that may be in FRACTAL_NZ."""
        return widened(self.elements(), self.dtype)

    def write(self, values: Any) -> None:
        """Values, broadcast to the shape, rounded once."""
        target = self.raw()
        if math.prod(self.shape):
            target[...] = np.broadcast_to(self.rounded(np.asarray(values)), self.shape)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Values in the stored type: floats to nearest even, integers modulo, as casts on the device wrap."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.dtype.name == "bf16":
                return to_bf16(values.astype(np.float64))
            if self.dtype.name.startswith("f8"):
                raise EmulationError(f"values of {self.dtype.name}: not emulated")
            if not self.is_float and values.dtype.kind == "f" and self.dtype.storage is not np.bool_:
                return np.trunc(values).astype(np.int64).astype(self.dtype.storage)
            return values.astype(self.dtype.storage)

    @property
    def is_float(self) -> bool:
        return self.dtype.name in _FLOATS_BY_NAME

    @property
    def is_dense(self) -> bool:
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True

    def __str__(self) -> str:
        text = f"{self.dtype.name}[{','.join(map(str, self.shape))}]"
        if not self.is_dense:
            text += f"/{','.join(map(str, self.strides))}"
        if self.format not in _PRIVATE_FORMATS:
            return text
        return f"{text}@{self.format}[{','.join(map(str, self.storage))}]"


def itemsize(dtype: DType) -> int:
    """Bytes of an element."""
    return np.dtype(dtype.storage).itemsize


def widened(raw: np.ndarray, dtype: DType) -> np.ndarray:
    """A copy of stored elements: float64 of floats, else the integers or booleans."""
    if dtype.name == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype.name.startswith("f8"):
        raise EmulationError(f"values of {dtype.name}: not emulated")
    return raw.astype(np.float64) if dtype.name in _FLOATS_BY_NAME else raw.copy()


def to_bf16(values: np.ndarray) -> np.ndarray:
    """u16 bits of float64 values rounded once to nearest even: f32 rounded to odd on the way keeps the sticky bit."""
    wide = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        near = wide.astype(np.float32)
        inexact = np.isfinite(near) & (near.astype(np.float64) != wide)
        bits = near.view(np.uint32).copy()
        # Truncate towards zero where rounding went away from it, then set the last bit.
        beyond = inexact & (np.abs(near.astype(np.float64)) > np.abs(wide))
    bits = np.where(beyond, bits - 1, bits)
    bits = np.where(inexact, bits | 1, bits)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(near), 0x7FC0 | (bits >> 16 & 0x8000), rounded).astype(np.uint16)


def read(pointer: int, memory: Any) -> Any:
    """What a handle stands for: a `Tensor`, a tuple of what a list holds, a number; None for a null pointer."""
    if not pointer:
        return None
    handle = _Handle.from_address(pointer)
    if handle.magic != _MAGIC:
        raise EmulationError("an argument is no living handle of aclCreate...")
    if handle.kind == _TENSOR:
        return _tensor(handle, memory)
    count = handle.count
    if handle.kind in (_TENSOR_LIST, _SCALAR_LIST):
        return tuple(read(item, memory) for item in (ctypes.c_uint64 * count).from_address(handle.values))
    if handle.kind == _FLOATS:
        return tuple((ctypes.c_double * count).from_address(handle.values))
    if handle.kind in (_INTS, _BOOLS):
        values = tuple((ctypes.c_int64 * count).from_address(handle.values))
        return tuple(map(bool, values)) if handle.kind == _BOOLS else values
    return _scalar(handle)


def _tensor(handle: _Handle, memory: Any) -> Tensor:
    if handle.dtype not in DTYPES:
        raise EmulationError(f"a tensor of aclDataType {handle.dtype}: not emulated")
    dimensions = slice(handle.dimensions)
    return Tensor(
        DTYPES[handle.dtype],
        handle.format,
        tuple(handle.shape[dimensions]),
        tuple(handle.strides[dimensions]),
        tuple(handle.storage[: handle.storage_dimensions]),
        handle.offset,
        handle.data or 0,
        memory,
    )


def _scalar(handle: _Handle) -> float | int | bool:
    dtype = DTYPES[handle.dtype]
    raw = np.frombuffer((ctypes.c_char * 16).from_address(handle.values), dtype.storage, 1)
    if dtype.name == "bf16":
        return float((raw.astype(np.uint32) << 16).view(np.float32)[0])
    value: float | int | bool = raw[0].item()
    return value


def is_handle(pointer: int) -> bool:
    """Whether an address holds a living handle; safe for any number."""
    try:
        with open("/proc/self/mem", "rb", 0) as memory:
            memory.seek(pointer)
            return int.from_bytes(memory.read(4), "little") == _MAGIC
    except (OSError, ValueError, OverflowError):
        return False
