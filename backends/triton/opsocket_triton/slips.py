"""The kernels themselves with one slip each in their source, as their authors could have made it: what the suite has to
find on an interpreted device, beside what its own catalogue does to any backend from outside."""

from __future__ import annotations

import importlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opsocket.operators import Plan, WrongKernel


@dataclass(frozen=True)
class Slip:
    """kernel: "module:function" below `package`, in whose source `right`, which stands there once, is replaced by
    `wrong`. plan: "module:Plan" that runs it. control: what the ladder says of it."""

    control: WrongKernel
    plan: str
    kernel: str
    right: str
    wrong: str
    package: str = "opsocket_triton"


_ATTENTION: Final = "attention.plan:TritonAttention"
_MATMUL: Final = "matmul.matmul:TritonMatmul"

SLIPS: Final = (
    Slip(
        WrongKernel(
            "keys loaded without a mask", "slots past the last key are multiplied too", "attention", "bf16", "out[",
            "batch=edges,x=onehot]",
        ),
        _ATTENTION, "attention.kernel:_codes", "x = tl.load(pointers, mask=seen[:, None], other=0)",
        "x = tl.load(pointers)",
    ),
    Slip(
        WrongKernel(
            "last partial tile of keys", "a loop over whole tiles alone", "attention", "f32", "out[",
            "batch=decode,x=normal]",
        ),
        _ATTENTION, "attention.kernel:attend", "for start in range(begin, end, BN):",
        "for start in range(begin, end - BN + 1, BN):",
    ),
    Slip(
        WrongKernel(
            "sums of earlier tiles not rescaled", "the largest logit rises, the sum stays", "attention", "f32", "out[",
            "batch=tail",
        ),
        _ATTENTION, "attention.kernel:attend", "total = total * decay + tl.sum(p, 1)", "total = total + tl.sum(p, 1)",
    ),
    Slip(
        WrongKernel(
            "last part of split keys", "the merge of parts stops one too early", "attention", "f16", "out[",
            "batch=tail",
        ),
        _ATTENTION, "attention.merge:merge_parts", "there = part < number_of_parts",
        "there = part < number_of_parts - 1",
    ),
    Slip(
        WrongKernel(
            "a window one key longer", "the bound is taken for exclusive", "attention", "bf16", "out[",
            "x=needle,left=7",
        ),
        _ATTENTION, "attention.kernel:attend", "low = tl.maximum(position.to(tl.int64) - left, 0)",
        "low = tl.maximum(position.to(tl.int64) - left - 1, 0)",
    ),
    Slip(
        WrongKernel("last of split sums", "one part of K is not added", "matmul", "bf16", "y[", "k=256,w=q8_0"),
        _MATMUL, "matmul.products:add_parts", "for part in range(parts):", "for part in range(parts - 1):",
    ),
    Slip(
        WrongKernel(
            "rows of x beyond the last", "a mask knows of columns only", "matmul", "bf16", "out-of-bounds load",
            "m=3,n=136,k=256,w=bf16",
        ),
        _MATMUL, "matmul.sums:_add_field_of_rows", "wanted = (at < last) & (column < k) & (r < x_rows)",
        "wanted = (at < last) & (column < k) & (r >= 0)",
    ),
    Slip(
        WrongKernel(
            "parts merged without their masks", "poison is taken for a part", "merge_states", "f32",
            "out-of-bounds load",
        ),
        "attention.merge:TritonMergeStates", "attention.merge:merge_rows",
        'mask=part < number_of_parts, other=float("-inf"))', "mask=part < number_of_parts)",
    ),
    Slip(
        WrongKernel(
            "mean over the block", "zeros behind a row count", "rms_norm", "bf16", "y[", "width=576,heads=0]"
        ),
        "model.rms_norm:TritonRMSNorm", "model.rms_norm:norm_rows",
        "scale = _scale(tl.sum(wide * wide, 1), width, eps)",
        "scale = _scale(tl.sum(wide * wide, 1), BLOCK, eps)",
    ),
    Slip(
        WrongKernel(
            "nibbles exchanged", "the first code goes up", "cache_write", "bf16", "cache_read k[", "kv=i4.token_head"
        ),
        "cache.write:TritonCacheWrite", "cache.write:_write", "packed = (low | (high << 4)).to(tl.uint8)",
        "packed = (high | (low << 4)).to(tl.uint8)",
    ),
)  # fmt: skip


def plan_with(one: Slip) -> type[Plan]:
    """The slip's plan, whose kernels have it while they are launched; on interpreted devices only."""
    module, name = one.plan.split(":")
    right: type[Plan] = getattr(importlib.import_module(f"{one.package}.{module}"), name)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _in_place(one):
            return right._run(self, *args, **kwargs)  # type: ignore[attr-defined]

    return type(f"{name}That{one.control.name.title().replace(' ', '')}", (right,), {"_run": run})


@contextmanager
def _in_place(one: Slip) -> Iterator[None]:
    """In every module that has the kernel, the one with the slip instead."""
    module, name = one.kernel.split(":")
    kernel = getattr(importlib.import_module(f"{one.package}.{module}"), name)
    changed = _changed(one, kernel)
    holders = [
        holder
        for path, holder in list(sys.modules.items())
        if path.startswith(f"{one.package}.") and getattr(holder, name, None) is kernel
    ]
    for holder in holders:
        setattr(holder, name, changed)
    try:
        yield
    finally:
        for holder in holders:
            setattr(holder, name, kernel)


def _changed(one: Slip, kernel: Any) -> Any:
    """The kernel made anew of its changed source, whose lines the interpreter finds as those of a file."""
    source = textwrap.dedent(inspect.getsource(kernel.fn))
    if source.count(one.right) != 1:
        raise ValueError(f"{one.control.name}: {one.right!r} stands {source.count(one.right)} times in {one.kernel}")
    source, file = source.replace(one.right, one.wrong), f"<{one.kernel}: {one.control.name}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    made: dict[str, Any] = {}
    exec(compile(source, file, "exec"), kernel.fn.__globals__, made)
    return made[kernel.fn.__name__]
