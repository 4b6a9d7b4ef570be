"""The greedy token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import ArgmaxPlan
from opsocket_triton.launch import launch
from opsocket_triton.model.order import index_of, key_of, order_of


@triton.jit
def argmax_rows(logits, out, stride, width, BLOCK: tl.constexpr):
    """out i64[r]: index of the largest of logits[r, :width], the first of equals, of NaN the first; r = program 0."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -0x80000000, tl.int32)
    where = lane
    for start in range(0, width, BLOCK):
        at = start + lane
        value = tl.load(logits + row * stride + at, mask=at < width, other=0.0).to(tl.float32)
        order = tl.where(at < width, order_of(value), -0x80000000)
        larger = order > best
        best = tl.where(larger, order, best)
        where = tl.where(larger, at, where)
    tl.store(out + row, index_of(tl.max(key_of(best, where), 0)).to(tl.int64))


class TritonArgmax(ArgmaxPlan):
    """A program for each row: logits are read once, at the rate of one multiprocessor where there are few rows."""

    capture_level = "any"

    def _run(self, logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        rows, width = logits.shape
        out = torch.empty(rows, dtype=torch.int64, device=logits.device) if out is None else out
        block = min(8192, max(128, triton.next_power_of_2(width)))
        launch(
            argmax_rows,
            (rows,),
            warps=min(16, max(4, block // 512)),
            logits=logits,
            out=out,
            stride=logits.stride(0),
            width=width,
            BLOCK=block,
        )
        return out
