"""Casts between the plain format and FRACTAL_NZ, by either of CANN's interfaces."""

from __future__ import annotations

import ctypes

from opsocket_ascend.emulator.calls import answers, at_once
from opsocket_ascend.emulator.handles import DTYPES, EmulationError, Tensor, itemsize
from opsocket_ascend.emulator.tiles import FRACTAL_NZ, ROW_BYTES, tiled_shape

_ND = 2
_AS_SOURCE = -1


@at_once(
    "aclnnNpuFormatCastCalculateSizeAndFormat",
    "source format:int dtype:int shape:pointer dimensions:pointer actual:pointer",
)
def _storage_of_cast(source: Tensor, format: int, dtype: int, shape: int, dimensions: int, actual: int) -> None:
    """How a cast's result will lie. The caller frees the shape, with C++'s delete[]."""
    asked, of_type = ctypes.c_int32(format & 0xFFFFFFFF).value, ctypes.c_int32(dtype & 0xFFFFFFFF).value
    if not 2 <= len(source.shape) <= 6 or 0 in source.shape:
        raise EmulationError(f"a format for {source}: 2 to 6 dimensions of some length are wanted")
    if asked == FRACTAL_NZ:
        element = source.dtype if of_type == _AS_SOURCE else DTYPES[of_type]
        storage = tiled_shape(source.shape, ROW_BYTES // itemsize(element))
    elif asked == _ND:
        storage = source.shape
    else:
        raise EmulationError(f"a cast to format {asked}: not emulated")
    array = ctypes.c_int64 * len(storage)
    allocate = ctypes.CDLL(None).malloc
    allocate.argtypes, allocate.restype = (ctypes.c_size_t,), ctypes.c_void_p
    place = allocate(ctypes.sizeof(array))
    array.from_address(place)[:] = storage
    ctypes.c_void_p.from_address(shape).value = place
    ctypes.c_uint64.from_address(dimensions).value = len(storage)
    ctypes.c_int32.from_address(actual).value = asked


@answers("aclnnNpuFormatCast", "source out")
def _cast(source: Tensor, out: Tensor) -> None:
    if source.dtype != out.dtype or source.shape != out.shape:
        raise EmulationError(f"a cast of {source} to {out}")
    out.put(source.elements())


@answers("Identity", "source out")
def _identity(source: Tensor, out: Tensor) -> None:
    """The older interface's operator that changes nothing but the format."""
    _cast(source, out)
