"""Types and shapes of the interpreter's values, found again instead of made at every operation.

Triton's front end makes a block type, the tuple of its shape and that tuple's own type for each value; for values that
NumPy computes in microseconds that was most of an interpreted run. What is kept here is immutable and equal to what
would be made, so that no result changes. It patches private classes, as `interpreter` does.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import triton.language.core as core
import triton.runtime.interpreter as base
from triton.language.semantic import TritonSemantic


def install() -> None:
    """Patch this process's Triton, once."""
    _keep_block_types()
    _keep_shapes()
    _keep_numpy_types()
    _pass_alike()
    # It computes each sum of integers again in 64 bits, for an assertion that is not made outside of debugging.
    builder = base.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _keep_block_types() -> None:
    make = core.block_type.__init__
    made: dict[Any, dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(size.value if type(size) is core.constexpr else size for size in shape))
        known = made.get(key)
        if known is None:
            make(self, element_ty, shape)
            made[key] = dict(self.__dict__)
        else:
            self.__dict__.update(known)

    core.block_type.__init__ = init


def _keep_shapes() -> None:
    known: dict[Any, tuple[Any, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape.values) if type.is_block() else ()
        found = known.get(sizes)
        if found is None:
            shape = core.tuple([core.constexpr(size) for size in sizes])
            found = known[sizes] = (shape, core.constexpr(math.prod(sizes)))
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = found

    core.tensor.__init__ = init


def _keep_numpy_types() -> None:
    find, known = base._get_np_dtype, {}  # type: Any, dict[str, np.dtype[Any]]

    def found(dtype: Any) -> np.dtype[Any]:
        result = known.get(dtype.name)
        if result is None:
            result = known[dtype.name] = find(dtype)
        return result

    base._get_np_dtype = found


def _are_alike(lhs: Any, rhs: Any) -> bool:
    if type(lhs) is not core.tensor or type(rhs) is not core.tensor:
        return False
    if lhs.dtype is not rhs.dtype or lhs.dtype.is_ptr():
        return False
    a, b = lhs.type, rhs.type
    return a.shape.values == b.shape.values if a.is_block() and b.is_block() else not (a.is_block() or b.is_block())


def _pass_alike() -> None:
    """Operands of one type and shape need no conversion and no broadcast, and plain values no unwrapping."""
    check, unwrap = TritonSemantic.binary_op_type_checking_impl, core._unwrap_if_constexpr

    def alike(self: Any, lhs: Any, rhs: Any, *rest: Any, div_or_mod: bool = False) -> Any:
        # A division widens floats of 16 bits; it says so by the last of the four that may come by place.
        if not div_or_mod and len(rest) < 4 and _are_alike(lhs, rhs):
            return lhs, rhs
        return check(self, lhs, rhs, *rest, **({"div_or_mod": True} if div_or_mod else {}))

    def unwrapped(value: Any) -> Any:
        kind = type(value)
        if kind is core.tensor or kind is int:
            return value
        return value.value if kind is core.constexpr else unwrap(value)

    TritonSemantic.binary_op_type_checking_impl = alike
    core._unwrap_if_constexpr = unwrapped
