"""Along one or several dimensions: sums, means, largest, softmax, running sums."""

from __future__ import annotations

import numpy as np

from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import Tensor


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """NaN where all are -inf, as torch has it."""
    with np.errstate(invalid="ignore"):
        weights = np.exp(x - x.max(axis, keepdims=True))
        return weights / weights.sum(axis, keepdims=True)


def _axes(self: Tensor, dims: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(dims) if dims else tuple(range(len(self.shape)))


@answers("aclnnMean", "self dims keep:bool dtype:int out")
def _mean(self: Tensor, dims: tuple[int, ...], keep: bool, dtype: int, out: Tensor) -> None:
    out.write(self.value().mean(_axes(self, dims), keepdims=keep))


@answers("aclnnReduceSum", "self dims keep:bool dtype:int out")
def _sum(self: Tensor, dims: tuple[int, ...], keep: bool, dtype: int, out: Tensor) -> None:
    out.write(self.value().sum(_axes(self, dims), keepdims=keep))


@answers("aclnnAmax", "self dims keep:bool out")
def _amax(self: Tensor, dims: tuple[int, ...], keep: bool, out: Tensor) -> None:
    out.write(self.value().max(_axes(self, dims), keepdims=keep))


@answers("aclnnAny", "self dims keep:bool out")
def _any(self: Tensor, dims: tuple[int, ...], keep: bool, out: Tensor) -> None:
    out.write(self.value().any(_axes(self, dims), keepdims=keep))


@answers("aclnnArgMax", "self dim:int keep:bool out")
def _argmax(self: Tensor, dim: int, keep: bool, out: Tensor) -> None:
    out.write(np.argmax(self.value(), dim, keepdims=keep))


@answers("aclnnSoftmax", "self dim:int out")
def _softmax(self: Tensor, dim: int, out: Tensor) -> None:
    out.write(softmax(self.value(), dim))


@answers("aclnnLogSumExp", "self dims keep:bool out")
def _logsumexp(self: Tensor, dims: tuple[int, ...], keep: bool, out: Tensor) -> None:
    x, axes = self.value(), _axes(self, dims)
    top = x.max(axes, keepdims=True)
    base = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        sums = np.log(np.exp(x - base).sum(axes, keepdims=True)) + base
    out.write(sums if keep else sums.squeeze(axes))


@answers("aclnnCumsum", "self dim:int dtype:int out")
def _cumsum(self: Tensor, dim: int, dtype: int, out: Tensor) -> None:
    out.write(self.value().cumsum(dim))
