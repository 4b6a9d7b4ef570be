"""The weighted sum of each token's rows, one from each of its experts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import MoECombinePlan, MoECombineSpec
from opsocket_triton.launch import launch


@triton.jit
def combine_rows(x, slots, weights, out, x_row, out_row, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """out[t, :] = the sum over j of weights[t, j] x[slots[t, j], :], for token t = program 0 and columns of block
    program 1. slots i64[T, TOP_K], weights f32[T, TOP_K]."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros([BLOCK], tl.float32)
    for choice in range(TOP_K):
        slot = tl.load(slots + token * TOP_K + choice)
        weight = tl.load(weights + token * TOP_K + choice)
        total += weight * tl.load(x + slot * x_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * out_row + column, total.to(out.dtype.element_ty), mask=inside)


class TritonMoECombine(MoECombinePlan):
    """In f32, in the order of the choices, rounded once. A slot that is not in x is undefined, and `checked: deep`
    finds it."""

    capture_level = "any"

    def _run(
        self, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None
    ) -> torch.Tensor:
        spec = self.request.spec
        assert isinstance(spec, MoECombineSpec)
        tokens, width = slots.shape[0], spec.width
        out = torch.empty(tokens, width, dtype=x.dtype, device=x.device) if out is None else out
        block = min(1024, triton.next_power_of_2(width))
        launch(
            combine_rows,
            (tokens, triton.cdiv(width, block)),
            x=x,
            slots=slots,
            weights=weights,
            out=out,
            x_row=x.stride(0),
            out_row=out.stride(0),
            width=width,
            TOP_K=spec.top_k,
            BLOCK=block,
        )
        return out
