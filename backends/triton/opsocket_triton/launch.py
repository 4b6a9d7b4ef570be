"""One door to every kernel: starts it, and can take down with what it was started.

What a launch specialized a kernel on (types, constants, what is a multiple of 16) is all that a compiler needs to make
it again for an architecture that is absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from opsocket_triton.mode import is_interpreting

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
Constant = int | float | bool | str | None


@dataclass(frozen=True)
class Specialization:
    """kernel: "module:function". signature: Triton's type of each argument, "constexpr" among them. constants: their
    values. aligned: arguments that are multiples of 16, by name. warps, stages: as launched. near: tensors in less than
    2 GiB of memory, for which AMD's compiler takes other loads."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    aligned: tuple[str, ...]
    warps: int
    stages: int
    near: tuple[str, ...] = ()

    @classmethod
    def of(cls, kernel: Any, args: dict[str, Any], warps: int, stages: int) -> Specialization:
        names = kernel.arg_names
        constexprs = {name for name, kind in kernel.fn.__annotations__.items() if "constexpr" in str(kind)}
        signature, constants, aligned, near = [], [], [], []
        for name in names:
            value = args[name]
            if name in constexprs or value is None or (type(value) is int and value == 1):
                signature.append((name, "constexpr"))
                constants.append((name, value))
                continue
            kind, multiple = _type_of(value)
            signature.append((name, kind))
            if multiple:
                aligned.append(name)
            if isinstance(value, torch.Tensor) and value.untyped_storage().size() < 2**31:
                near.append(name)
        where = f"{kernel.fn.__module__}:{kernel.fn.__name__}"
        return cls(where, tuple(signature), tuple(constants), tuple(aligned), warps, stages, tuple(near))

    def dumps(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Specialization:
        data = json.loads(text)
        pairs = {name: tuple(map(tuple, data[name])) for name in ("signature", "constants")}
        return cls(**{**data, **pairs, "aligned": tuple(data["aligned"]), "near": tuple(data.get("near", ()))})

    def __str__(self) -> str:
        """For people: the function, the types of its tensors, and its constants."""
        types = dict.fromkeys(kind.removeprefix("*") for _, kind in self.signature if kind.startswith("*"))
        constants = [f"{name}={value}" for name, value in self.constants]
        return " ".join([self.kernel.partition(":")[2], ",".join(types), *constants, f"warps={self.warps}"])


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
    device. Enqueued on the current stream of the current device.
    """
    if not all(grid):
        return
    folder = os.environ.get(RECORD_VARIABLE)
    if folder:
        _record(Path(folder), Specialization.of(kernel, args, warps, stages))
    if reached and is_interpreting():
        from opsocket_triton import interpreter

        with interpreter.reached(reached):
            kernel[grid](**args, num_warps=warps, num_stages=stages)
    else:
        kernel[grid](**args, num_warps=warps, num_stages=stages)


def _record(folder: Path, specialization: Specialization) -> None:
    line = specialization.dumps()
    if line not in _seen:
        _seen.add(line)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
