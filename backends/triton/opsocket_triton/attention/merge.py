"""The union of attention over disjoint keys: of the parts that `attend` leaves, and of whole outputs.

Method: online softmax (Milakov and Gimelshein 2018) over tiles of parts; a part that saw nothing is not read.

Bytes: a part of a row is read once, in f32 4 Dvo + 8 of it; the memory's rate limits it, or at a few rows the latency
of two dependent reads, which is why the parts of a tile are read at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import MergeStatesPlan, MergeStatesSpec
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_triton.attention.accepted import MERGE as SPILLS
from opsocket_triton.attention.kernel import exponential, natural
from opsocket_triton.functions import exp_exact, log_exact
from opsocket_triton.launch import launch

ACCEPTED = SPILLS
MERGE = tl.constexpr(8)
"""Numbers of a merge; `schedule.MERGE` says what follows."""


@triton.jit(do_not_specialize=("sinks", "lse", "out_row", "lse_row"))
def merge_parts(ints, parts, states, sinks, out, lse, out_row, lse_row, unit,
                EXACT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
                PARTS: tl.constexpr):  # fmt: skip
    """Row program 0 of the list of merges, of KV head program 1, from parts f32[rows, DIM] and states f32[rows, 2]."""
    number = tl.program_id(0)
    head = tl.program_id(1)
    count = tl.load(ints + 4)
    if number >= count:
        return
    group = tl.load(ints + 6)
    item = ints + tl.load(ints + 5) + number * MERGE
    q_row0 = tl.load(item).to(tl.int64)
    row = tl.load(item + 1)
    number_of_parts = tl.load(item + 2)
    first_part = tl.load(item + 3).to(tl.int64)
    step = tl.load(item + 4)
    within = tl.load(item + 5)
    query = row // group
    q_head = head * group + (row - query * group)
    columns = tl.arange(0, WIDTH)
    top = float("-inf")
    total = 0.0
    acc = tl.zeros([WIDTH], tl.float32)
    for first in range(0, number_of_parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = part < number_of_parts
        rows = (first_part + part * step) * tl.num_programs(1) + head * step + within
        tops = tl.load(states + rows * 2, mask=there, other=float("-inf"))
        totals = tl.load(states + rows * 2 + 1, mask=there, other=0.0)
        read = (tops != float("-inf"))[:, None] & (columns[None, :] < DIM)
        values = tl.load(parts + rows[:, None] * DIM + columns[None, :], mask=read, other=0.0)
        new_top = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = exponential(top - base, EXACT)
        weights = exponential(tops - base, EXACT)
        total = total * decay + tl.sum(totals * weights, 0)
        acc = acc * decay + tl.sum(values * weights[:, None], 0)
        top = new_top
    # Without sinks one of -inf, which changes nothing.
    sink = tl.load(sinks + q_head, mask=tl.load(ints + 11) != 0, other=float("-inf")) * unit
    new_top = tl.maximum(top, sink)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    decay = exponential(top - base, EXACT)
    total = total * decay + exponential(sink - base, EXACT)
    acc = acc * decay
    top = new_top
    empty = total == 0.0
    counted = tl.where(empty, 1.0, total)
    value = acc * tl.where(empty, 0.0, tl.math.div_rn(1.0, counted))
    at = (q_row0 + query) * out_row + q_head * DIM
    tl.store(out + at + columns, value.to(out.dtype.element_ty), mask=columns < DIM)
    value = tl.where(empty, float("-inf"), natural(top, counted, EXACT))
    tl.store(lse + (q_row0 + query) * lse_row + q_head, value, mask=tl.load(ints + 12) != 0)


@triton.jit(do_not_specialize=("lses", "lse", "number_of_parts", "heads", "lse_part", "lse_row"))
def merge_rows(outs, lses, out, lse, number_of_parts, heads, part_stride, row_stride, lse_part, lse_row, out_row,
               DIM: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """Head program 1 of row program 0: outs [S, T, H, DIM], lses f32[S, T, H] -> out [T, H, DIM], lse f32[T, H]."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    top = float("-inf")
    total = 0.0
    acc = tl.zeros([WIDTH], tl.float32)
    for first in range(0, number_of_parts, PARTS):
        part = (first + tl.arange(0, PARTS)).to(tl.int64)
        tops = tl.load(lses + part * lse_part + row * lse_row + head, mask=part < number_of_parts, other=float("-inf"))
        read = (tops != float("-inf"))[:, None] & (columns[None, :] < DIM)
        where = (part * part_stride + row * row_stride + head * DIM)[:, None] + columns[None, :]
        values = tl.load(outs + where, mask=read, other=0.0).to(tl.float32)
        new_top = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = exp_exact(top - base)
        weights = exp_exact(tops - base)
        total = total * decay + tl.sum(weights, 0)
        acc = acc * decay + tl.sum(values * weights[:, None], 0)
        top = new_top
    empty = total == 0.0
    counted = tl.where(empty, 1.0, total)
    value = acc * tl.where(empty, 0.0, tl.math.div_rn(1.0, counted))
    tl.store(out + row * out_row + head * DIM + columns, value.to(out.dtype.element_ty), mask=columns < DIM)
    tl.store(lse + row * heads + head, tl.where(empty, float("-inf"), top + log_exact(counted)))


class TritonMergeStates(MergeStatesPlan):
    """In f32; a part of LSE -inf is not read."""

    capture_level = "any"

    def _run(
        self, outs: torch.Tensor, lses: torch.Tensor, out: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MergeStatesSpec)
        parts, rows, heads, dim = outs.shape
        if out is None:
            out = outs.new_empty((rows, heads, dim), dtype=TORCH_DTYPES[spec.out_dtype])
        lse = lses.new_empty((rows, heads))
        width = triton.next_power_of_2(dim)
        launch(
            merge_rows,
            (rows, heads),
            outs=outs,
            lses=lses,
            out=out,
            lse=lse,
            number_of_parts=parts,
            heads=heads,
            part_stride=outs.stride(0),
            row_stride=outs.stride(1),
            lse_part=lses.stride(0),
            lse_row=lses.stride(1),
            out_row=out.stride(0),
            DIM=dim,
            WIDTH=width,
            PARTS=max(2, min(16, triton.next_power_of_2(parts), 4096 // width)),
        )
        return out, lse
