"""One door to every kernel: starts it, and can take down with what it was started."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch

from opsocket_triton.mode import is_interpreting
from opsocket_triton.specialization import Specialization

RECORD_VARIABLE: Final = "OPSOCKET_RECORD_LAUNCHES"
"""A folder: each process writes what it launches into a file of its own there, a line of JSON each."""

_TYPES: Final = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
    torch.float8_e5m2: "fp8e5",
}


def specialization(kernel: Any, args: dict[str, Any], warps: int, stages: int) -> Specialization:
    """Of a kernel that is about to be launched with `args`, which are by name."""
    names = kernel.arg_names
    constexprs = {name for name, kind in kernel.fn.__annotations__.items() if "constexpr" in str(kind)}
    plain = _unspecialized(kernel)
    signature, constants, aligned, near = [], [], [], []
    for name in names:
        value = args[name]
        is_one = type(value) is int and value == 1 and name not in plain
        if name in constexprs or value is None or is_one:
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        kind, multiple = _type_of(value)
        signature.append((name, kind))
        if multiple and name not in plain:
            aligned.append(name)
        if isinstance(value, torch.Tensor) and value.untyped_storage().size() < 2**31:
            near.append(name)
    where = f"{kernel.fn.__module__}:{kernel.fn.__name__}"
    return Specialization(where, tuple(signature), tuple(constants), tuple(aligned), warps, stages, tuple(near))


def _unspecialized(kernel: Any) -> frozenset[str]:
    """Arguments that a kernel is not compiled anew for, by its decorator's `do_not_specialize`."""
    given = getattr(kernel, "kwargs", {}).get("do_not_specialize") or getattr(kernel, "do_not_specialize", ())
    return frozenset(given)


def _type_of(value: Any) -> tuple[str, bool]:
    """Triton's type of an argument, and whether it is known to be a multiple of 16."""
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}", value.data_ptr() % 16 == 0
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    raise TypeError(f"a kernel takes tensors, numbers and None, not {type(value).__name__}")


_seen: set[str] = set()


class _Taken:
    """What is taken down of launches. rehearsing: they are not carried out."""

    def __init__(self, rehearsing: bool) -> None:
        self.rehearsing = rehearsing
        self.made: dict[Specialization, None] = {}
        self.digest = hashlib.sha256()

    def take(self, made: Specialization, grid: tuple[int, ...], args: dict[str, Any]) -> None:
        self.made[made] = None
        shown = {name: _shown(value) for name, value in args.items()}
        self.digest.update(f"{made.dumps()}\0{grid}\0{shown}\n".encode())


def _shown(value: Any) -> Any:
    return (tuple(value.shape), value.stride()) if isinstance(value, torch.Tensor) else value


_taken: _Taken | None = None


def take_down(rehearse: bool = False) -> None:
    """From now on, take down what is launched; rehearse: instead of carrying it out."""
    global _taken
    _taken = _Taken(rehearse)


def taken() -> tuple[Specialization, ...]:
    """What was launched since the last call, each specialization once."""
    assert _taken is not None, "take_down comes first"
    found, _taken.made = tuple(_taken.made), {}
    return found


def trace() -> str:
    """A digest of the launches since the last call, their grids, numbers and shapes with them."""
    assert _taken is not None, "take_down comes first"
    found, _taken.digest = _taken.digest.hexdigest(), hashlib.sha256()
    return found


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    warps: int = 4,
    stages: int = 2,
    reached: Sequence[torch.Tensor] = (),
    **args: Any,
) -> None:
    """Start `kernel` on a grid of programs, its arguments by name; nothing where the grid is empty.

    stages: of software pipelining. reached: tensors that are no arguments, whose addresses the kernel reads on the
    device. Enqueued on the current stream of the arguments' device.
    """
    if not all(grid):
        return
    folder = os.environ.get(RECORD_VARIABLE)
    if folder or _taken is not None:
        made = specialization(kernel, args, warps, stages)
        if folder:
            _record(Path(folder), made)
        if _taken is not None:
            _taken.take(made, grid, args)
            if _taken.rehearsing:
                return
    if reached and is_interpreting():
        from opsocket_triton import interpreter

        with interpreter.reached(reached):
            kernel[grid](**args, num_warps=warps, num_stages=stages)
    else:
        with _on_device_of(args):
            kernel[grid](**args, num_warps=warps, num_stages=stages)


def _on_device_of(args: dict[str, Any]) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which is another where several sessions are open."""
    on = next(value.device for value in args.values() if isinstance(value, torch.Tensor))
    if on.type not in ("cuda", "npu"):
        return nullcontext()
    module = getattr(torch, on.type)
    found: AbstractContextManager[Any] = nullcontext() if on.index == module.current_device() else module.device(on)
    return found


def _record(folder: Path, made: Specialization) -> None:
    line = made.dumps()
    if line not in _seen:
        _seen.add(line)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
