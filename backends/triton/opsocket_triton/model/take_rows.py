"""Selection of rows: a copy, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import TakeRowsPlan
from opsocket_triton.launch import launch

_BITS = {2: torch.int16, 4: torch.int32}


@triton.jit
def take_rows(x, rows, out, x_row, out_row, width, BLOCK: tl.constexpr):
    """out[r, :] = x[rows[r], :] for row r = program 0 and columns of block program 1, as integers."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(rows + row)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    tl.store(out + row * out_row + column, tl.load(x + source * x_row + column, mask=inside, other=0), mask=inside)


class TritonTakeRows(TakeRowsPlan):
    """As bits: NaN keeps its payload. A row number that is not in x is undefined, and `checked: deep` finds it."""

    capture_level = "any"

    def _run(self, x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        count, width = rows.shape[0], x.shape[1]
        out = torch.empty(count, width, dtype=x.dtype, device=x.device) if out is None else out
        bits = _BITS[x.element_size()]
        block = min(2048, triton.next_power_of_2(width))
        launch(
            take_rows,
            (count, triton.cdiv(width, block)),
            x=x.view(bits),
            rows=rows,
            out=out.view(bits),
            x_row=x.stride(0),
            out_row=out.stride(0),
            width=width,
            BLOCK=block,
        )
        return out
