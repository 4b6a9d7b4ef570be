"""Many programs of a launch at once, under Triton's interpreter: its time goes into Python, hardly into numbers.

Programs of one launch execute the same operations for as long as no branch and no loop depends on which of them it is.
So they are carried out together: what differs from program to program is an array with a first axis more, one entry
each (`Each`), and what does not is computed once. A branch or a bound that differs takes them apart: what they have
written is taken back, and those of one answer start again together, the third time each alone.

It is an order of execution that a chip may take as well, and every operation, its check of bounds included, is carried
out on the numbers of every program. Grids are gone through as chips do, the first axis fastest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from typing import Any, Final

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as base

_FIRST: Final = 8
"""Programs of a launch that start together, before it is known how large their blocks are."""
_MOST: Final = 256
_ELEMENTS: Final = 1 << 19
"""Of the largest block of all programs that are carried out together: with more, Python's part is small enough."""
_TRIES: Final = 3
"""How many branches may take programs apart before each is carried out alone."""


class Each(np.ndarray):
    """[programs, ...]: a block for each program; [programs, 1] where it is one number."""


class _Apart(BaseException):
    """Programs go different ways: by these answers, one of each."""

    def __init__(self, answers: np.ndarray) -> None:
        self.answers = answers


_together: np.ndarray | None = None
"""i32 [programs, 3], where in the grid those are that are carried out together; None: one is, alone."""
_written: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
"""What they have written over: addresses, numbers, masks, in order."""
_widest: int = 0
"""Elements of the largest block that a program of the launch has made, as far as is known."""
_known: dict[Hashable, int] = {}
"""The same of kernels that ran before."""


def run(program: Callable[[], Any], grid: tuple[int, int, int], kernel: Hashable) -> None:
    """Carry out `program` for every place in the grid. kernel: what its blocks are of the same sizes for."""
    global _widest
    number = np.arange(math.prod(grid))
    places = np.stack([number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1])], 1)
    # Along the other axes lie parts of a loop or a batch: a whole line of the first goes the same way more often.
    line = grid[0] if grid[0] >= _FIRST else len(places)
    _widest = _known.get(kernel, 0)
    start = 0
    while start < len(places):
        count = min(max(_ELEMENTS // _widest, 1), _MOST) if _widest else _FIRST
        stop = min(start + count, (start // line + 1) * line)
        _run(program, places[start:stop].astype(np.int32), 0)
        start = stop
    _known[kernel] = _widest


def _run(program: Callable[[], Any], places: np.ndarray, tries: int) -> None:
    global _together
    if len(places) == 1 or tries == _TRIES:
        for place in places:
            base.interpreter_builder.set_grid_idx(*map(int, place))
            program()
        return
    _together = places
    _written.clear()
    try:
        program()
        return
    except _Apart as apart:
        for pointers, numbers, mask in reversed(_written):
            base._interpreter.store(pointers, numbers, mask)
        answers = apart.answers
    finally:
        _together = None
        _written.clear()
    for answer in dict.fromkeys(answers.tolist()):
        _run(program, places[answers == answer], tries + 1)


def install() -> None:
    """Teach the interpreter's operations, mended before, what an `Each` is."""
    _places()
    _elementwise()
    _shapes()
    _memory()
    _answers()
    _along_axes()


def _is_each(*handles: Any) -> bool:
    return any(isinstance(handle.data, Each) for handle in handles if isinstance(handle, base.TensorHandle))


def _handle(data: np.ndarray, dtype: tl.dtype) -> base.TensorHandle:
    return base.TensorHandle(data.view(Each), dtype)


def _spread(data: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """[programs, *shape] of a block that each program has, or that is the same for all. shape: its own where None."""
    assert _together is not None
    own = data.shape[1:] if isinstance(data, Each) else data.shape
    shape = own if shape is None else shape
    plain = data.view(np.ndarray)
    if not isinstance(data, Each):
        plain = plain[None]
    return np.broadcast_to(plain, (len(_together), *shape))


def _places() -> None:
    builder = base.InterpreterBuilder
    program_id = builder.create_get_program_id

    def create_get_program_id(self: Any, axis: int) -> Any:
        if _together is None:
            return program_id(self, axis)
        return _handle(np.ascontiguousarray(_together[:, axis : axis + 1]), tl.int32)

    builder.create_get_program_id = create_get_program_id


_ELEMENTWISE: Final = (
    "binary_op", "unary_op", "ternary_op", "cast_impl", "create_fp_to_fp", "create_bitcast", "create_int_to_ptr",
    "create_ptr_to_int", "create_idiv", "create_ashr", "create_umulhi", "create_fma", "create_fabs", "create_erf",
    "create_rsqrt", "create_addptr", "create_dot",
)  # fmt: skip
"""Operations that NumPy carries out right on any first axes, but may return as plain arrays."""
_REFUSED: Final = (
    "create_histogram", "create_dot_scaled", "create_print", "create_atomic_poll", "create_make_tensor_descriptor",
    "create_descriptor_load", "create_descriptor_store", "create_descriptor_gather", "create_descriptor_scatter",
)  # fmt: skip
"""Operations that each program carries out alone."""


def _elementwise() -> None:
    builder = base.InterpreterBuilder

    def kept(operation: Any) -> Any:
        def operate(self: Any, *args: Any) -> Any:
            result = operation(self, *args)
            if _together is not None and not isinstance(result.data, Each) and _is_each(*args):
                result.data = result.data.view(Each)
            return result

        return operate

    def refused(operation: Any) -> Any:
        def operate(self: Any, *args: Any, **kwargs: Any) -> Any:
            if _together is not None:
                raise _Apart(np.arange(len(_together)))
            return operation(self, *args, **kwargs)

        return operate

    for name in _ELEMENTWISE:
        setattr(builder, name, kept(getattr(builder, name)))
    for name in _REFUSED:
        setattr(builder, name, refused(getattr(builder, name)))


def _shapes() -> None:
    builder = base.InterpreterBuilder

    def also(name: str, each: Callable[..., Any], operands: int = 1) -> None:
        alone = getattr(builder, name)

        def operate(self: Any, *args: Any) -> Any:
            return each(*args) if _is_each(*args[:operands]) else alone(self, *args)

        setattr(builder, name, operate)

    def reshape(arg: Any, shape: Any, allow_reorder: bool) -> Any:
        return _handle(arg.data.reshape((len(arg.data), *shape)), arg.dtype.scalar)

    def trans(arg: Any, perm: Any) -> Any:
        return _handle(np.transpose(arg.data, (0, *(axis + 1 for axis in perm))), arg.dtype.scalar)

    def expand_dims(arg: Any, axis: int) -> Any:
        return _handle(np.expand_dims(arg.data, axis + 1), arg.dtype.scalar)

    def broadcast(arg: Any, shape: Any) -> Any:
        return _handle(_noted(_spread(arg.data, tuple(shape))), arg.dtype.scalar)

    def splat(kind: Any, arg: Any) -> Any:
        numbers = arg.data.reshape(-1, *(1 for _ in kind.shape)).view(Each)
        return _handle(_noted(_spread(numbers, tuple(kind.shape))), arg.dtype.scalar)

    def unsplat(arg: Any) -> Any:
        return _handle(arg.data.reshape(len(arg.data), -1)[:, :1], arg.dtype.scalar)

    def cat(a: Any, b: Any) -> Any:
        return _handle(np.concatenate([_spread(a.data), _spread(b.data)], 1), a.dtype.scalar)

    def join(a: Any, b: Any) -> Any:
        return _handle(np.stack([_spread(a.data), _spread(b.data)], -1), a.dtype.scalar)

    def split(arg: Any) -> Any:
        halves = (arg.data[..., half] for half in (0, 1))
        return tuple(_handle(half[:, None] if half.ndim == 1 else half, arg.dtype.scalar) for half in halves)

    def gather(source: Any, indices: Any, axis: int) -> Any:
        found = np.take_along_axis(_spread(source.data), _spread(indices.data), axis + 1)
        return _handle(found, source.dtype.scalar)

    also("create_reshape", reshape)
    also("create_trans", trans)
    also("create_expand_dims", expand_dims)
    also("create_broadcast", broadcast)
    also("create_splat", splat, operands=2)
    also("create_unsplat", unsplat)
    also("create_cat", cat, operands=2)
    also("create_join", join, operands=2)
    also("create_split", split)
    also("create_gather", gather, operands=2)


def _noted(data: np.ndarray) -> np.ndarray:
    global _widest
    _widest = max(_widest, data[0].size)
    return data


def take_down() -> None:
    """Keep what programs write over, so that it can be taken back; below whoever checks that addresses are valid."""
    builder = base.InterpreterBuilder

    def kept(operation: Any, pointers_at: int, mask_at: int | None) -> Any:
        def operate(self: Any, *args: Any) -> Any:
            if _together is not None:
                pointers = args[pointers_at]
                mask = np.ones(pointers.data.shape, bool) if mask_at is None else args[mask_at].data
                kind = base._get_np_dtype(pointers.get_element_ty())
                nothing = np.zeros(pointers.data.shape, kind)
                numbers = base._interpreter.load(pointers.data, mask, nothing, kind)
                _written.append((pointers.data, numbers, mask))
            return operation(self, *args)

        return operate

    builder.create_masked_store = kept(builder.create_masked_store, 0, 2)
    builder.create_atomic_rmw = kept(builder.create_atomic_rmw, 1, 3)
    builder.create_atomic_cas = kept(builder.create_atomic_cas, 0, None)


def _memory() -> None:
    builder = base.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def common(*handles: Any) -> list[Any]:
        """The handles' blocks, one for each program; None stays None."""
        return [
            None if handle is None else base.TensorHandle(np.ascontiguousarray(_spread(handle.data)), handle.dtype)
            for handle in handles
        ]

    def masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        if not _is_each(pointers, mask, other):
            return load(self, pointers, mask, other, *rest)
        _noted(pointers.data)
        found = load(self, *common(pointers, mask, other), *rest)
        return _handle(found.data, found.dtype)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if _is_each(pointers, value, mask):
            pointers, value, mask = common(pointers, value, mask)
        return store(self, pointers, value, mask, *rest)

    # An atomic operation takes place once for each program, even where all do the same.
    def atomic_rmw(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if _together is None:
            return rmw(self, operation, pointers, value, mask, *rest)
        done = rmw(self, operation, *common(pointers, value, mask), *rest)
        return _handle(done.data, done.dtype)

    def atomic_cas(self: Any, pointers: Any, expected: Any, value: Any, *rest: Any) -> Any:
        if _together is None:
            return cas(self, pointers, expected, value, *rest)
        done = cas(self, *common(pointers, expected, value), *rest)
        return _handle(done.data, done.dtype)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_atomic_rmw, builder.create_atomic_cas = atomic_rmw, atomic_cas


def _answers() -> None:
    """What Python asks a number for, in `if` and `range`: one answer of all programs, or each goes its way."""
    patch = base._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        index, truth = tensor.__index__, tensor.__bool__

        def answer(data: Any) -> Any:
            plain = data.view(np.ndarray)[:, 0]
            if (plain != plain[0]).any():
                raise _Apart(plain)
            return plain[0]

        def as_index(self: Any) -> int:
            data = self.handle.data
            return int(answer(data)) if isinstance(data, Each) else int(index(self))

        def as_truth(self: Any) -> bool:
            data = self.handle.data
            # Of more than one number Triton's interpreter takes every block for true.
            return bool(answer(data != 0)) if isinstance(data, Each) and data[0].size == 1 else bool(truth(self))

        scope.set_attr(tensor, "__index__", as_index)
        scope.set_attr(tensor, "__bool__", as_truth)

    base._patch_lang_tensor = patched


def _along_axes() -> None:
    for cls, known in ((base.ReduceOps, _reduction_is_known), (base.ScanOps, _scan_is_known)):
        apply, to_tensor = cls.apply_impl, cls.to_tensor

        def together(self: Any, given: Any, apply: Any = apply, known: Any = known) -> Any:
            if not _is_each(*(one.handle for one in given)):
                return apply(self, given)
            blocks = [_spread(one.handle.data) for one in given]
            kinds = [one.dtype for one in given]
            if not known(self):
                return _one_by_one(lambda given: apply(self, given), blocks, kinds)
            along = copy.copy(self)
            along.many = True
            along.axis = tuple(range(1, blocks[0].ndim)) if self.axis is None else self.axis + 1
            given = tuple(
                tl.tensor(base.TensorHandle(block, kind), one.type)
                for block, kind, one in zip(blocks, kinds, given, strict=True)
            )
            return apply(along, given)

        def shaped(self: Any, numbers: Any, dtype: Any, to_tensor: Any = to_tensor) -> Any:
            if not getattr(self, "many", False):
                return to_tensor(self, numbers, dtype)
            numbers = numbers.astype(base._get_np_dtype(dtype))
            kind = tl.block_type(dtype, list(numbers.shape[1:])) if numbers.ndim > 1 else dtype
            return tl.tensor(_handle(numbers[:, None] if numbers.ndim == 1 else numbers, dtype.scalar), kind)

        cls.apply_impl, cls.to_tensor = together, shaped


def _reduction_is_known(reduction: Any) -> bool:
    """Whether NumPy carries it out along any axes."""
    standard = tl.standard
    if reduction.combine_fn in (standard._sum_combine, standard._elementwise_max, standard._elementwise_min):
        return True
    places = (
        standard._argmax_combine_tie_break_left, standard._argmax_combine_tie_break_fast,
        standard._argmin_combine_tie_break_left, standard._argmin_combine_tie_break_fast,
    )  # fmt: skip
    return reduction.axis is not None and reduction.combine_fn in places


def _scan_is_known(scan: Any) -> bool:
    return scan.combine_fn in (tl.standard._sum_combine, tl.standard._prod_combine)


def _one_by_one(apply: Callable[[Any], Any], blocks: list[np.ndarray], kinds: list[Any]) -> list[Any]:
    """What is carried out along an axis, by a function of the kernel's own, for one program after the other."""
    results = []
    for program in range(len(blocks[0])):
        given = tuple(
            tl.tensor(base.TensorHandle(block[program], kind), tl.block_type(kind, list(block.shape[1:])))
            for block, kind in zip(blocks, kinds, strict=True)
        )
        found = apply(given)
        results.append(found if isinstance(found, list | tuple) else [found])
    return [
        tl.tensor(_handle(np.stack([one.handle.data for one in each]), each[0].handle.dtype), each[0].type)
        for each in zip(*results, strict=True)
    ]
