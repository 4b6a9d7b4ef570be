"""The union of attention over disjoint keys, for vector cores: HEADS heads of a row at once, part after part.

Method: online softmax (Milakov and Gimelshein 2018). Everything is a vector over heads: of scalars triton-adapter-opt
3.2.0 takes no division that is rounded to nearest. A part is read once; memory is the limit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.functions import exp_exact, log_exact


@triton.jit(do_not_specialize=("parts", "rows", "heads", "part_stride", "row_stride", "lse_part", "lse_row", "out_row"))
def merge_heads(
    outs, lses, out, lse, parts, rows, heads, part_stride, row_stride, lse_part, lse_row, out_row,
    DIM: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """outs [S, T, H, DIM], lses f32[S, T, H] -> out [T, H, DIM], lse f32[T, H]. A part of LSE -inf counts for nothing,
    whatever its values are."""
    tiles = (heads + HEADS - 1) // HEADS
    column = tl.arange(0, WIDE)
    for number in range(tl.program_id(0), rows * tiles, tl.num_programs(0)):
        row = tl.cast(number // tiles, tl.int64)
        head = (number % tiles) * HEADS + tl.arange(0, HEADS)
        inside = head < heads
        mask = inside[:, None] & (column < DIM)[None, :]
        place = head[:, None] * DIM + column[None, :]
        top = tl.full([HEADS], float("-inf"), tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        acc = tl.zeros([HEADS, WIDE], tl.float32)
        for part in range(parts):
            at = tl.cast(part, tl.int64)
            found = tl.load(lses + at * lse_part + row * lse_row + head, mask=inside, other=float("-inf"))
            values = tl.load(outs + at * part_stride + row * row_stride + place, mask=mask, other=0.0).to(tl.float32)
            there = found != float("-inf")
            new_top = tl.maximum(top, found)
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            decay = exp_exact(top - base)
            weight = exp_exact(found - base)
            total = total * decay + weight
            acc = acc * decay[:, None] + tl.where(there[:, None], values, 0.0) * weight[:, None]
            top = new_top
        empty = total == 0.0
        counted = tl.where(empty, 1.0, total)
        share = tl.where(empty, 0.0, tl.math.div_rn(1.0, counted))
        value = acc * share[:, None]
        tl.store(out + row * out_row + place, value.to(out.dtype.element_ty), mask=mask)
        joint = tl.where(empty, float("-inf"), top + log_exact(counted))
        tl.store(lse + row * heads + head, joint, mask=inside)
