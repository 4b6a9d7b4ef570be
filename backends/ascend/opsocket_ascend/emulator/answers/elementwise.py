"""Element by element: arithmetic, functions, comparisons, choices, fills and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import Tensor

Number = float | int | bool
Function = Callable[..., Any]


def _quotient(a: Any, b: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(a, b)


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(-x)), where exp may overflow: 0 then."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def _quiet(function: Function) -> Function:
    def computed(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args)

    return computed


_UNARY: Final[dict[str, Function]] = {
    "Abs": np.abs,
    "BitwiseNot": np.invert,
    "Cos": np.cos,
    "Exp": np.exp,
    "IsFinite": np.isfinite,
    "Log": np.log,
    "Log2": np.log2,
    "LogicalNot": np.logical_not,
    "Neg": np.negative,
    "Reciprocal": lambda x: 1 / x,
    "Round": np.rint,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Silu": silu,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}
_BINARY: Final[dict[str, Function]] = {
    "BitwiseAndTensor": np.bitwise_and,
    "BitwiseOrTensor": np.bitwise_or,
    "Div": _quotient,
    "EqTensor": np.equal,
    "FloorDivide": np.floor_divide,
    "GeTensor": np.greater_equal,
    "GtTensor": np.greater,
    "LeTensor": np.less_equal,
    "LogicalAnd": np.logical_and,
    "LogicalOr": np.logical_or,
    "LtTensor": np.less,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "NeTensor": np.not_equal,
    "RightShift": np.right_shift,
}
_WITH_SCALAR: Final[dict[str, Function]] = {
    "BitwiseAndScalar": np.bitwise_and,
    "Divs": _quotient,
    "EqScalar": np.equal,
    "FloorDivides": np.floor_divide,
    "GeScalar": np.greater_equal,
    "GtScalar": np.greater,
    "LeftShifts": np.left_shift,
    "LeScalar": np.less_equal,
    "LtScalar": np.less,
    "Muls": np.multiply,
    "NeScalar": np.not_equal,
    "PowTensorScalar": np.power,
    "RemainderTensorScalar": np.remainder,
}
_SCALED: Final[dict[str, Function]] = {
    "Add": lambda a, b, alpha: a + alpha * b,
    "Sub": lambda a, b, alpha: a - alpha * b,
    "Rsub": lambda a, b, alpha: b - alpha * a,
}


def _register() -> None:
    for name, function in _UNARY.items():
        _unary(name, _quiet(function))
    for name, function in (_BINARY | _WITH_SCALAR).items():
        _binary(name, _quiet(function))
    for name, function in _SCALED.items():
        for suffix in ("", "s"):
            _scaled(name, suffix, _quiet(function))


def _unary(name: str, function: Function) -> None:
    @answers(f"aclnn{name}", "self out")
    def answer(self: Tensor, out: Tensor) -> None:
        out.write(function(self.value()))

    @answers(f"aclnnInplace{name}", "self")
    def in_place(self: Tensor) -> None:
        self.write(function(self.value()))


def _binary(name: str, function: Function) -> None:
    @answers(f"aclnn{name}", "self other out")
    def answer(self: Tensor, other: Tensor | Number, out: Tensor) -> None:
        out.write(function(self.value(), _value(other)))

    @answers(f"aclnnInplace{name}", "self other")
    def in_place(self: Tensor, other: Tensor | Number) -> None:
        self.write(function(self.value(), _value(other)))


def _scaled(name: str, suffix: str, function: Function) -> None:
    @answers(f"aclnn{name}{suffix}", "self other alpha out")
    def answer(self: Tensor, other: Tensor | Number, alpha: Number, out: Tensor) -> None:
        out.write(function(self.value(), _value(other), alpha))

    @answers(f"aclnnInplace{name}{suffix}", "self other alpha")
    def in_place(self: Tensor, other: Tensor | Number, alpha: Number) -> None:
        self.write(function(self.value(), _value(other), alpha))


def _value(operand: Tensor | Number) -> Any:
    return operand.value() if isinstance(operand, Tensor) else operand


_register()


@answers("aclnnInplaceAddcmul", "self factor other scale")
def _add_product(self: Tensor, factor: Tensor, other: Tensor, scale: Number) -> None:
    self.write(_quiet(lambda a, b, c: a + scale * b * c)(self.value(), factor.value(), other.value()))


@answers("aclnnClamp", "self low high out")
def _clamp(self: Tensor, low: Number | None, high: Number | None, out: Tensor) -> None:
    out.write(np.clip(self.value(), low, high) if (low, high) != (None, None) else self.value())


@answers("aclnnInplaceNanToNum", "self nan:float positive:float negative:float")
def _nan_to_num(self: Tensor, nan: float, positive: float, negative: float) -> None:
    self.write(np.nan_to_num(self.value(), nan=nan, posinf=positive, neginf=negative))


@answers("aclnnSWhere", "condition self other out")
def _where(condition: Tensor, self: Tensor, other: Tensor, out: Tensor) -> None:
    out.write(np.where(condition.value().astype(bool), self.value(), other.value()))


@answers("aclnnInplaceMaskedFillScalar", "self mask value")
def _masked_fill(self: Tensor, mask: Tensor, value: Number) -> None:
    self.write(np.where(mask.value().astype(bool), value, self.value()))


@answers("aclnnInplaceCopy", "self source")
def _copy(self: Tensor, source: Tensor) -> None:
    # Bits stay as they are where nothing is converted: NaN's payload too.
    if self.dtype == source.dtype:
        self.raw()[...] = np.broadcast_to(source.raw(), self.shape).copy()
    else:
        self.write(source.value())


@answers("aclnnCast", "self dtype:int out")
def _cast(self: Tensor, dtype: int, out: Tensor) -> None:
    _copy(out, self)


@answers("aclnnInplaceZero", "self")
def _zero(self: Tensor) -> None:
    self.raw()[...] = 0


@answers("aclnnInplaceOne", "self")
def _one(self: Tensor) -> None:
    self.write(1.0)


@answers("aclnnInplaceFillScalar", "self value")
def _fill(self: Tensor, value: Number) -> None:
    self.write(value)


@answers("aclnnArange", "start end step out")
def _arange(start: Number, end: Number, step: Number, out: Tensor) -> None:
    out.write(start + step * np.arange(out.shape[0]))
