"""Kernels that are wrong on purpose. Each has to be refused, by the suite or by who looks at what was compiled: where
one passes, what is said of the right kernels is worth nothing."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
import triton
import triton.language as tl

from opsocket.operators import AddPlan, Plan
from opsocket_triton.launch import launch

# ---- additions that the suite has to find wrong, on an interpreted device


@triton.jit
def reads_beyond(a, b, out, width, BLOCK: tl.constexpr):
    """Of one row too much is loaded, and stored as it should be."""
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    sums = tl.load(a + row + columns).to(tl.float32) + tl.load(b + row + columns).to(tl.float32)
    tl.store(out + row + columns, sums.to(out.dtype.element_ty), mask=columns < width)


@triton.jit
def truncates(a, b, out, width, BLOCK: tl.constexpr):
    """f32 to bf16 by its upper half, which rounds towards zero."""
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    left = tl.load(a + row + columns, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(b + row + columns, mask=inside, other=0.0).to(tl.float32)
    bits = ((left + right).to(tl.int32, bitcast=True) >> 16).to(tl.int16)
    tl.store(out + row + columns, bits.to(tl.bfloat16, bitcast=True), mask=inside)


@triton.jit
def small_product(a, b, out, width, BLOCK: tl.constexpr):
    """A product of 4 rows, less than a matrix unit takes; its zeros are added to the right sum."""
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    left = tl.load(a + row + columns, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(b + row + columns, mask=inside, other=0.0).to(tl.float32)
    nothing = tl.dot(tl.zeros((4, 16), tl.bfloat16), tl.zeros((16, 16), tl.bfloat16))
    sums = left + right + tl.sum(tl.sum(nothing, 1), 0)
    tl.store(out + row + columns, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rounded_product(a, b, out, width, BLOCK: tl.constexpr):
    """A product of f32 that a chip rounds to tf32 first; its zeros are added to the right sum."""
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    left = tl.load(a + row + columns, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(b + row + columns, mask=inside, other=0.0).to(tl.float32)
    zeros = tl.zeros((16, 16), tl.float32)
    sums = left + right + tl.sum(tl.sum(tl.dot(zeros, zeros, input_precision="tf32"), 1), 0)
    tl.store(out + row + columns, sums.to(out.dtype.element_ty), mask=inside)


class _WrongAdd(AddPlan):
    _kernel: ClassVar[Any]

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        result = torch.empty_like(a, memory_format=torch.contiguous_format)
        width = a.shape[1]
        launch(
            self._kernel,
            (a.shape[0],),
            a=a.contiguous(),
            b=b.contiguous(),
            out=result,
            width=width,
            BLOCK=2 * triton.next_power_of_2(width),
        )
        return result if out is None else out.copy_(result)


class ReadsBeyond(_WrongAdd):
    _kernel = reads_beyond


class Truncates(_WrongAdd):
    _kernel = truncates


class SmallProduct(_WrongAdd):
    _kernel = small_product


class RoundedProduct(_WrongAdd):
    _kernel = rounded_product


WRONG_PLANS: Final[dict[str, type[Plan]]] = {
    "out-of-bounds load": ReadsBeyond,
    "bf16 by truncation": Truncates,
    "a product that no unit takes": SmallProduct,
    "an f32 product in tf32": RoundedProduct,
}
"""By the names of the ladder's `wrong_kernels`."""

# ---- kernels whose artifacts have to be refused


@triton.jit
def oversized(a, b, out, depth, STEP: tl.constexpr):
    """Tiles for which no chip's on-chip memory suffices. a: [64, depth], b: [depth, 64]."""
    row = tl.arange(0, 64)[:, None]
    column = tl.arange(0, 64)[None, :]
    step = tl.arange(0, STEP)
    sums = tl.zeros((64, 64), tl.float32)
    for start in range(0, depth, STEP):
        left = tl.load(a + row * depth + (start + step)[None, :])
        right = tl.load(b + (start + step)[:, None] * 64 + column)
        sums = tl.dot(left, right, sums)
    tl.store(out + row * 64 + column, sums)


@triton.jit
def without_instruction(a, b, out):
    """A product that is there in the source, and gone from the binary: no program's number has such bits."""
    at = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    sums = tl.zeros((64, 64), tl.float32)
    if (tl.program_id(0) & 1) > 1:
        sums = tl.dot(tl.load(a + at), tl.load(b + at), sums)
    tl.store(out + at, sums)


@triton.jit
def on_lanes(a, b, out):
    """A product too small for CDNA's matrix units, which its lanes are given instead."""
    row = tl.arange(0, 4)[:, None] * 16 + tl.arange(0, 16)[None, :]
    whole = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + row, tl.dot(tl.load(a + row), tl.load(b + whole)))


@triton.jit
def in_tf32(a, b, out):
    """A product of f32 whose factors are rounded to tf32, where the chip has it."""
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision="tf32"))


@triton.jit
def crowded(x, out, N: tl.constexpr):
    """More values at the same time than lanes have registers."""
    at = tl.arange(0, N)
    values = tl.load(x + at)
    tl.store(out + at, values - tl.max(values, 0))
