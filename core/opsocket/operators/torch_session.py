"""The array half of a session whose arrays are torch tensors: what the torch-based backends have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from opsocket.operators.device import Array, ArrayInfo
from opsocket.operators.errors import ContractError, ResourceError
from opsocket.operators.session import Session

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3fn": torch.float8_e4m3fn,
    "f8e4m3fnuz": torch.float8_e4m3fnuz,
    "f8e5m2": torch.float8_e5m2,
    "i64": torch.int64,
    "i32": torch.int32,
    "i8": torch.int8,
    "u8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_NUMPY = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "i64": np.int64,
    "i32": np.int32,
    "i8": np.int8,
    "u8": np.uint8,
}
_NAMES_OF_NUMPY = {scalar: name for name, scalar in _NUMPY.items()}
_UNSIGNED = {1: np.uint8, 2: np.uint16}


class TorchSession(Session):
    """`torch_device`: where the tensors live, e.g. torch.device("cpu")."""

    array_type = torch.Tensor
    in_place = True
    torch_device: torch.device = torch.device("cpu")

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        try:
            return torch.empty(tuple(shape), dtype=_torch_dtype(dtype), device=self.torch_device)
        except RuntimeError as error:
            need = int(np.prod(shape, dtype=object)) * _torch_dtype(dtype).itemsize
            raise ResourceError("bytes of device memory", need, str(error).splitlines()[0]) from None

    def upload(self, array: np.ndarray, dtype: str | None = None) -> Array:
        host, want = _on_host(np.asarray(array), dtype)
        return host.to(self.torch_device, want)

    def download(self, array: Array) -> np.ndarray:
        name = _NAMES.get(getattr(array, "dtype", None))
        if name not in _NUMPY or self._dense_shape(array, name) is None:
            name = self.describe(array).dtype
        host = array.detach()
        if not host.is_cpu:
            host = host.cpu()
        if name not in _NUMPY:
            host = host.to(torch.float32)
        result: np.ndarray = host.contiguous().numpy().copy()
        return result

    def write(self, array: Array, values: np.ndarray) -> Array:
        values = np.asarray(values)
        if self._dense_shape(array, _NAMES_OF_NUMPY.get(values.dtype.type, "")) == values.shape and _is_dense(values):
            self._copy(array, torch.from_numpy(values))
            return array
        info = self.describe(array)
        if values.ndim != len(info.shape) or values.shape[0] > info.shape[0] or values.shape[1:] != info.shape[1:]:
            raise ContractError("values", f"leading rows of shape {list(info.shape)}", f"shape {list(values.shape)}")
        if _NUMPY.get(info.dtype) == values.dtype.type and _is_dense(values):
            source = torch.from_numpy(values)
        else:
            host, want = _on_host(values, info.dtype)
            source = host.to(want)
        self._copy(array[: values.shape[0]], source)
        return array

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """From the host to this session's device, behind the work enqueued before."""
        target.copy_(source)

    def view(self, array: Array, shape: Sequence[int]) -> Array:
        try:
            return array.view(tuple(shape))
        except RuntimeError:
            raise ContractError(
                "shape", f"a view of shape {list(array.shape)}, strides {array.stride()}", list(shape)
            ) from None

    def split(self, array: Array, sizes: Sequence[int]) -> tuple[Array, ...]:
        try:
            parts: tuple[Array, ...] = array.split_with_sizes(tuple(sizes), -1)
        except (RuntimeError, IndexError):
            raise ContractError("sizes", f"sizes whose sum is the last of {list(array.shape)}", list(sizes)) from None
        return parts

    def _dense_shape(self, array: Array, dtype: str) -> tuple[int, ...] | None:
        if (
            type(array) is torch.Tensor
            and array.dtype is TORCH_DTYPES.get(dtype)
            and array.device == self.torch_device
            and array.is_contiguous()
            and not array.is_neg()
        ):
            shape: tuple[int, ...] = array.shape
            return shape
        return None

    def describe(self, array: Array) -> ArrayInfo:
        if not isinstance(array, torch.Tensor):
            raise ContractError("array", "a torch.Tensor of this session", type(array).__name__)
        if array.is_neg():  # kernels read memory, whose numbers have the other sign
            raise ContractError("array", "numbers as they lie in memory: array.resolve_neg()", "a negated view")
        on = array.device
        device = str(self.device) if on == self.torch_device else str(on)
        return ArrayInfo(tuple(array.shape), _NAMES.get(array.dtype, str(array.dtype)), array.stride(), device)


def _is_dense(values: np.ndarray) -> bool:
    """Whether torch can look at the values where they are."""
    return values.flags.writeable and values.flags.c_contiguous


def _on_host(array: np.ndarray, dtype: str | None) -> tuple[torch.Tensor, torch.dtype]:
    """A tensor on the host that shares no memory with `array`, and the type that it is wanted in."""
    if dtype is None:
        dtype = _name_of(array)
    want = _torch_dtype(dtype)
    if dtype in ("bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2") and array.dtype.kind == "u":
        if array.dtype != _UNSIGNED[want.itemsize]:
            raise ContractError("array", f"raw bits of {want.itemsize} bytes for {dtype}", str(array.dtype))
        signed = np.ascontiguousarray(array).view(np.int16 if want.itemsize == 2 else np.uint8)
        return torch.from_numpy(signed.copy()).view(want), want
    if array.dtype == np.uint16 or array.dtype.kind not in "fiub":
        raise ContractError("array", f"values that {dtype} can hold", f"dtype {array.dtype}")
    return torch.from_numpy(np.array(array, order="C", copy=True)), want


def _torch_dtype(name: str) -> torch.dtype:
    try:
        return TORCH_DTYPES[name]
    except KeyError:
        raise ContractError("dtype", f"one of {sorted(TORCH_DTYPES)}", repr(name)) from None


def _name_of(array: np.ndarray) -> str:
    for name, dtype in _NUMPY.items():
        if array.dtype == dtype:
            return name
    raise ContractError("array", f"a dtype of {sorted(_NUMPY)}, or an explicit dtype", str(array.dtype))


def storage_bytes(*tensors: Any) -> int:
    """Bytes that tensors take on their device."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
