"""Triton's interpreter (3.9), made to refuse or mend what it gets wrong without a word.

As it comes, it multiplies and adds the raw bits of bf16 and f8, rounds f32 to bf16 towards zero, takes dots that no
matrix unit takes, reads and writes anywhere in the process, and fills lanes that a load leaves undefined with zeros.
Here
- bf16 and f8 are computed in f32 and rounded to nearest even; their sums over an axis are refused: widen first;
- every pointer of an active lane has to lie inside a tensor that the kernel was given, and kernels run on the tensors'
  own memory, which on a simulated device is within reach for that long only, instead of on copies on the host;
- a lane that a mask without `other` leaves out holds a poison, not a zero;
- a dot is at least 16 x 16 x 16 (32 deep for 8-bit types), and one of f32 says input_precision="ieee": a chip would
  round its factors to tf32 otherwise;
- programs that go the same way are carried out together (`lockstep`).

What it can't see: races, memory order, shared memory, the number of warps, fused products and sums, the chip's own
approximations of exp2, log2 and division. It patches private classes, so Triton's version is part of its contract.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import triton
import triton.language as tl
import triton.runtime.interpreter as base
from triton.runtime.jit import JITFunction

from opsocket_simulated import memory
from opsocket_triton import interpreter_types, lockstep

TRITON: Final = "3.9"
"""The version whose private classes are patched here."""

_NARROW: Final = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5: torch.float8_e5m2,
}
_POISON: Final = 0xA5


class OutOfBounds(MemoryError):
    """A kernel touched memory outside of every tensor that it was given."""


class Unfaithful(TypeError):
    """A kernel asks the interpreter for something that a chip does otherwise, or not at all."""


def install() -> None:
    """Patch the interpreter of this process, once."""
    if triton.__version__.split(".")[:2] != TRITON.split("."):
        raise RuntimeError(f"the interpreter is mended for triton {TRITON}, and {triton.__version__} is installed")
    if getattr(base.InterpreterBuilder, "opsocket", False):
        return
    base.InterpreterBuilder.opsocket = True
    _interpret_library()
    _patch_once()
    interpreter_types.install()
    _mend_arithmetic()
    lockstep.take_down()
    _guard_memory()
    _refuse_narrow_reductions()
    lockstep.install()


def _interpret_library() -> None:
    """Triton's own device functions (`tl.sum`, `tl.interleave`), made for a chip if triton was imported before this
    process was told to interpret, as functions of the interpreter; one object for each, which reductions compare."""
    made: dict[Any, base.InterpretedFunction] = {}
    for module in (tl.standard, tl.random, tl):
        for name, member in list(vars(module).items()):
            if isinstance(member, JITFunction):
                setattr(module, name, made.setdefault(member.fn, base.InterpretedFunction(member.fn)))


_patched: set[str] = set()
"""Which of Triton's modules the launch that runs has made the interpreter's so far."""


def _patch_once() -> None:
    """The interpreter patches Triton's modules anew at every call of a device function, a third of its time."""

    def patches(function: Any) -> frozenset[str]:
        values = function.__globals__.values()
        return frozenset(lang.__name__ for lang in (tl, tl.core) if any(value is lang for value in values))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "patches"):
            self.patches = patches(self.fn)
        if not self.patches <= _patched:
            base._patch_lang(self.fn)
            _patched.update(self.patches)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise base.InterpreterError(repr(error)) from error

    base.InterpretedFunction.__call__ = call


def _is_narrow(handle: base.TensorHandle) -> bool:
    return handle.dtype.scalar in _NARROW


def widened(handle: base.TensorHandle) -> np.ndarray:
    """f32 values of a bf16 or f8 handle."""
    bits = torch.from_numpy(np.array(handle.data, copy=True, order="C"))
    return bits.view(_NARROW[handle.dtype.scalar]).float().numpy().reshape(handle.data.shape)


def narrowed(values: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    """f32 values rounded to nearest even, as the raw bits that the interpreter keeps."""
    rounded = torch.from_numpy(np.array(values, np.float32, copy=True, order="C")).to(_NARROW[dtype])
    bits = rounded.view(torch.int16 if rounded.element_size() == 2 else torch.uint8).numpy()
    return bits.view(base._get_np_dtype(dtype)).reshape(np.shape(values))


def _mend_arithmetic() -> None:
    builder = base.InterpreterBuilder
    binary, unary, dot = builder.binary_op, builder.unary_op, builder.create_dot
    cast, fp_to_fp = builder.cast_impl, builder.create_fp_to_fp

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not _is_narrow(lhs) or op.__name__.startswith(("bitwise", "left", "right")):
            return binary(self, lhs, rhs, op)
        result = op(widened(lhs), widened(rhs))
        if result.dtype == np.bool_:
            return base.TensorHandle(result, tl.int1)
        return base.TensorHandle(narrowed(result, lhs.dtype.scalar), lhs.dtype.scalar)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        if not _is_narrow(arg):
            return unary(self, arg, op)
        return base.TensorHandle(narrowed(op(widened(arg)), arg.dtype.scalar), arg.dtype.scalar)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, most_imprecise: Any) -> Any:
        _check_dot(a, b, input_precision)
        if a.data.dtype.kind in "iu" and not _is_narrow(a):
            # In f64, which holds every such sum exactly: NumPy has no fast product of integers.
            product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
            return base.TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)
        left = widened(a) if _is_narrow(a) else a.data
        right = widened(b) if _is_narrow(b) else b.data
        if d.data.dtype == np.float32:
            product = np.matmul(left.astype(np.float32), right.astype(np.float32))
            return base.TensorHandle(product + d.data, d.dtype.scalar)
        return dot(self, a, b, d, input_precision, most_imprecise)

    def converting(old: Any) -> Any:
        def convert(self: Any, source: Any, dtype: Any, *rest: Any) -> Any:
            target = dtype.scalar
            if not (_is_narrow(source) or target in _NARROW):
                return old(self, source, dtype, *rest)
            values = widened(source) if _is_narrow(source) else source.data.astype(np.float32)
            if target in _NARROW:
                return base.TensorHandle(narrowed(values, target), target)
            return base.TensorHandle(values.astype(base._get_np_dtype(target)), target)

        return convert

    builder.binary_op, builder.unary_op, builder.create_dot = binary_op, unary_op, create_dot
    builder.cast_impl, builder.create_fp_to_fp = converting(cast), converting(fp_to_fp)


def _check_dot(a: Any, b: Any, input_precision: Any) -> None:
    rows, depth = a.data.shape[-2:]
    columns = b.data.shape[-1]
    least = 32 if a.dtype.scalar.primitive_bitwidth == 8 else 16
    if rows < 16 or columns < 16 or depth < least:
        got = f"{rows} x {columns} x {depth} of {a.dtype.scalar}"
        raise Unfaithful(f"tl.dot: at least 16 x 16 x {least} is wanted by matrix units, {got} came")
    is_ieee = "IEEE" in str(input_precision).upper()
    if a.dtype.scalar == tl.float32 and not is_ieee:
        raise Unfaithful(f"tl.dot of f32 says input_precision='ieee', not {input_precision}: it would run in tf32")


_given: list[tuple[int, int]] = []
"""First and last-plus-one address of every tensor of the launch that runs."""
_reached: list[torch.Tensor] = []
"""Tensors that the next launch finds by addresses in memory."""
_elsewhere: dict[str, Place] = {}
"""By torch's name of a kind of device."""
_one_at_a_time = threading.RLock()
"""The interpreter keeps the place in the grid in one variable for all threads."""


def _guard_memory() -> None:
    builder = base.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    atomic_rmw, atomic_cas = builder.create_atomic_rmw, builder.create_atomic_cas
    convert = base._implicit_cvt

    def remembering(arg: Any) -> Any:
        found = convert(arg)
        if isinstance(arg, torch.Tensor) and arg.numel():
            found.handle.data = np.array([_remember(arg)], np.uint64)
        return found

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [arg for arg in (*args, *kwargs.values(), *_reached) if isinstance(arg, torch.Tensor)]
        with _one_at_a_time, memory.launched(tensors):
            _given.clear()
            for tensor in _reached:
                if tensor.numel():
                    _remember(tensor)
            given = _taken(self, args, kwargs)
            place = next((_elsewhere[t.device.type] for t in tensors if t.device.type in _elsewhere), None)
            if place is None:
                _carry_out(self, given)
            else:
                inside = tuple(_given)
                place.submit(self.fn.__name__, lambda: _again(self, given, inside))

    def masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        mask = _as_bool(mask)
        _check_pointers(pointers, mask, "load")
        if other is None and not mask.data.all():
            element = pointers.get_element_ty()
            dtype = base._get_np_dtype(element)
            poison = np.frombuffer(bytes([_POISON]) * dtype.itemsize, dtype=dtype)[0] if dtype.kind != "b" else True
            poison = np.nan if dtype.kind == "f" else poison
            other = base.TensorHandle(np.full(pointers.data.shape, poison, dtype), element)
        return load(self, pointers, mask, other, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask = _as_bool(mask)
        _check_pointers(pointers, mask, "store")
        return store(self, pointers, value, mask, *rest)

    def rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask = _as_bool(mask)
        _check_pointers(pointers, mask, "atomic")
        return atomic_rmw(self, op, pointers, value, mask, *rest)

    def cas(self: Any, pointers: Any, *rest: Any) -> Any:
        _check_pointers(pointers, None, "atomic")
        return atomic_cas(self, pointers, *rest)

    base._implicit_cvt, base.GridExecutor.__call__ = remembering, call
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_atomic_rmw, builder.create_atomic_cas = rmw, cas


def _taken(launch: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A launch's arguments, tensors as the addresses of their own memory: Triton's would copy each to the host and
    back."""
    signature = inspect.signature(launch.fn)
    bound = signature.bind(*args, **{name: value for name, value in kwargs.items() if name in signature.parameters})
    bound.apply_defaults()
    return {
        name: value if name in launch.constexprs else base._implicit_cvt(value)
        for name, value in bound.arguments.items()
    }


def _carry_out(launch: Any, given: dict[str, Any]) -> None:
    """All programs of a launch."""
    _patched.clear()
    patched = base._patch_lang(launch.fn)
    try:
        grid = launch.grid(given) if callable(launch.grid) else launch.grid
        x, y, z = (*grid, 1, 1)[:3]
        base.interpreter_builder.set_grid_dim(x, y, z)
        try:
            constants = tuple(str(given[name]) for name in launch.constexprs)
            # What the mended arithmetic does with torch on the host stands for registers: nobody is to watch it.
            with torch._C._DisableTorchDispatch():
                lockstep.run(lambda: launch.fn(**given), (x, y, z), (launch.fn, constants))
        except Exception as error:
            raise base.InterpreterError(repr(error)) from error
    finally:
        patched.restore()


def _again(launch: Any, given: dict[str, Any], inside: Sequence[tuple[int, int]]) -> None:
    """Now, or in a replay: what it was given may have other contents, at the same addresses."""
    with _one_at_a_time:
        _given[:] = inside
        _carry_out(launch, given)


@contextmanager
def reached(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Launches inside may touch these as well: the kernel reads their addresses from memory."""
    with _one_at_a_time:
        _reached.extend(tensors)
        try:
            yield
        finally:
            _reached.clear()


@dataclass(frozen=True)
class Place:
    """A kind of device whose tensors are not where their addresses say. find: where the host has so many bytes from an
    address on, which are of one allocation. submit: carries out a launch of that name, now, or whenever its stream says
    so: again in each replay of a graph."""

    find: Callable[[int, int], int]
    submit: Callable[[str, Callable[[], None]], None]


def run_on(kind: str, place: Place) -> None:
    """From now on, launches with tensors on devices of this kind, by torch's name, are carried out there."""
    _elsewhere[kind] = place


def _remember(tensor: torch.Tensor) -> int:
    """Where the host finds a tensor that the launch was given, which has elements."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start, count = tensor.data_ptr(), (last + 1) * tensor.element_size()
    place = _elsewhere.get(tensor.device.type)
    start = start if place is None else place.find(start, count)
    _given.append((start, start + count))
    return start


def _as_bool(mask: Any) -> Any:
    """A mask as NumPy's truth values: where a scalar was spread over a block it is numbers, which index."""
    return mask if mask is None or mask.data.dtype == np.bool_ else base.TensorHandle(mask.data != 0, tl.int1)


def _check_pointers(pointers: Any, mask: Any, what: str) -> None:
    active = pointers.data.reshape(-1)
    if mask is not None:
        active = active[np.broadcast_to(mask.data, pointers.data.shape).reshape(-1)]
    if not active.size:
        return
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    low, high = int(active.min()), int(active.max()) + size
    if any(start <= low and high <= stop for start, stop in _given):
        return
    inside = np.zeros(active.shape, bool)
    for start, stop in _given:
        inside |= (active >= np.uint64(start)) & (active + np.uint64(size) <= np.uint64(stop))
    if not inside.all():
        outside = int((~inside).sum())
        raise OutOfBounds(f"out-of-bounds {what}: {outside} of {active.size} active lanes are in no tensor given")


def _refuse_narrow_reductions() -> None:
    for cls in (base.ReduceOps, base.ScanOps):
        apply = cls.apply_impl

        def checked(self: Any, given: Any, apply: Any = apply) -> Any:
            for each in given if isinstance(given, tuple) else (given,):
                if each.handle.dtype.scalar in _NARROW:
                    raise Unfaithful(f"a reduction of {each.handle.dtype.scalar}: widen to f32 first")
            return apply(self, given)

        cls.apply_impl = checked
