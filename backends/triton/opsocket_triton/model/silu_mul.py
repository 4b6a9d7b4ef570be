"""The gated activation of a decoder."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import SiluMulPlan
from opsocket_triton.functions import exp_exact
from opsocket_triton.launch import launch
from opsocket_triton.model.rows import like


@triton.jit
def silu_mul_rows(gate, up, out, gate_row, up_row, out_row, width, BLOCK: tl.constexpr):
    """out[r, :] = gate / (1 + exp(-gate)) * up for row r = program 0 and columns of block program 1, in f32."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.math.div_rn(g, 1.0 + exp_exact(-g)) * u
    tl.store(out + row * out_row + column, y.to(out.dtype.element_ty), mask=inside)


class TritonSiluMul(SiluMulPlan):
    """Two elements read for one written; memory is the limit."""

    capture_level = "any"

    def _run(self, gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        out = like(gate) if out is None else out
        rows, width = gate.shape
        block = min(2048, triton.next_power_of_2(width))
        launch(
            silu_mul_rows,
            (rows, triton.cdiv(width, block)),
            gate=gate,
            up=up,
            out=out,
            gate_row=gate.stride(0),
            up_row=up.stride(0),
            out_row=out.stride(0),
            width=width,
            BLOCK=block,
        )
        return out
