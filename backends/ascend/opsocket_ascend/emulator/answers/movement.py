"""Elements taken from one place and put to another, as they are."""

from __future__ import annotations

import numpy as np

from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import EmulationError, Tensor


def numbers(index: Tensor, length: int) -> np.ndarray:
    """Row numbers; one that is out of range, which reads other memory on a chip, is an error here."""
    values = index.value().astype(np.int64)
    if values.size and (values.min() < 0 or values.max() >= length):
        raise EmulationError(f"an index of {values.min()} to {values.max()} into {length}")
    return values


@answers("aclnnIndexSelect", "self dim:int index out")
def _index_select(self: Tensor, dim: int, index: Tensor, out: Tensor) -> None:
    out.raw()[...] = np.take(self.raw(), numbers(index, self.shape[dim]).reshape(-1), axis=dim)


@answers("aclnnGather", "self dim:int index out")
def _gather(self: Tensor, dim: int, index: Tensor, out: Tensor) -> None:
    at = numbers(index, self.shape[dim])
    source = self.raw()[tuple(slice(n if axis != dim % at.ndim else None) for axis, n in enumerate(at.shape))]
    out.raw()[...] = np.take_along_axis(source, at, axis=dim)


def _places(self: Tensor, indices: tuple[Tensor | None, ...]) -> tuple[np.ndarray | slice, ...]:
    """Advanced indices, as torch has them: missing ones take the whole dimension."""
    found: list[np.ndarray | slice] = []
    for dim, index in enumerate(indices):
        if index is None or (index.dtype.name != "bool" and index.shape == (0,) and self.shape[dim]):
            found.append(slice(None))
        elif index.dtype.name == "bool":
            raise EmulationError("an index of booleans: not emulated")
        else:
            values = index.value().astype(np.int64)
            if values.size and (values.min() < -self.shape[dim] or values.max() >= self.shape[dim]):
                raise EmulationError(f"an index of {values.min()} to {values.max()} into {self.shape[dim]}")
            found.append(values)
    return tuple(found)


@answers("aclnnIndex", "self indices out")
def _index(self: Tensor, indices: tuple[Tensor | None, ...], out: Tensor) -> None:
    out.raw()[...] = self.raw()[_places(self, indices)]


@answers("aclnnIndexPutImpl", "self indices values accumulate:bool unsafe:bool")
def _index_put(
    self: Tensor, indices: tuple[Tensor | None, ...], values: Tensor, accumulate: bool, unsafe: bool
) -> None:
    if accumulate:
        raise EmulationError("index_put that accumulates: not emulated")
    if values.dtype != self.dtype:
        raise EmulationError(f"index_put of {values} into {self}")
    self.raw()[_places(self, indices)] = values.raw()


@answers("aclnnInplaceIndexCopy", "self dim:int index source")
def _index_copy(self: Tensor, dim: int, index: Tensor, source: Tensor) -> None:
    target = np.moveaxis(self.raw(), dim, 0)
    target[numbers(index, self.shape[dim]).reshape(-1)] = np.moveaxis(source.raw(), dim, 0)


@answers("aclnnInplaceScatter", "self dim:int index source reduce:int")
def _scatter(self: Tensor, dim: int, index: Tensor, source: Tensor, reduce: int) -> None:
    if reduce or len(self.shape) != 1:
        raise EmulationError("scatter that reduces, or of more than one dimension: not emulated")
    at = numbers(index, self.shape[dim])
    self.raw()[at] = source.raw()[: len(at)]


@answers("aclnnCat", "tensors dim:int out")
def _cat(tensors: tuple[Tensor, ...], dim: int, out: Tensor) -> None:
    if any(t.dtype != out.dtype for t in tensors):
        raise EmulationError("cat of several dtypes: not emulated")
    out.raw()[...] = np.concatenate([t.raw() for t in tensors], axis=dim)


@answers("aclnnStack", "tensors dim:int out")
def _stack(tensors: tuple[Tensor, ...], dim: int, out: Tensor) -> None:
    out.raw()[...] = np.stack([t.raw() for t in tensors], axis=dim)


@answers("aclnnRepeatInterleaveIntWithDim", "self repeats:int dim:int size:int out")
def _repeat_interleave(self: Tensor, repeats: int, dim: int, size: int, out: Tensor) -> None:
    out.raw()[...] = np.repeat(self.raw(), repeats, axis=dim)


@answers("aclnnSort", "self stable:bool dim:int descending:bool values indices")
def _sort(self: Tensor, stable: bool, dim: int, descending: bool, values: Tensor, indices: Tensor) -> None:
    # NaN counts as the largest, as torch has it.
    key = self.value().astype(np.float64)
    key = np.where(np.isnan(key), np.inf, key)
    order = np.argsort(-key if descending else key, axis=dim, kind="stable")
    indices.write(order)
    values.raw()[...] = np.take_along_axis(self.raw(), order, axis=dim)


@answers("aclnnSearchSorted", "found values in_i32:bool right:bool sorter out")
def _search_sorted(
    found: Tensor, values: Tensor, in_i32: bool, right: bool, sorter: Tensor | None, out: Tensor
) -> None:
    if len(found.shape) != 1 or sorter is not None:
        raise EmulationError("searchsorted in several rows, or by a sorter: not emulated")
    out.write(np.searchsorted(found.value(), values.value(), "right" if right else "left"))


@answers("aclnnRepeat", "self repeats out")
def _repeat(self: Tensor, repeats: tuple[int, ...], out: Tensor) -> None:
    out.raw()[...] = np.tile(self.raw(), repeats)


@answers("aclnnInplaceIndexFill", "self dim:int index value")
def _index_fill(self: Tensor, dim: int, index: Tensor, value: float) -> None:
    np.moveaxis(self.raw(), dim, 0)[numbers(index, self.shape[dim])] = self.rounded(np.float64(value))
