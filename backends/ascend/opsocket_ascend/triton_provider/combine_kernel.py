"""The weighted sum of each token's rows, for vector cores: runs of BLOCK columns, choice after choice."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("tokens", "width", "x_row", "out_row"))
def combine_tokens(x, slots, weights, out, tokens, width, x_row, out_row, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """out[t, :] = the sum over j of weights[t, j] x[slots[t, j], :]. slots i64[tokens, TOP_K], weights
    f32[tokens, TOP_K], x [C, width], out [tokens, width]."""
    tiles = (width + BLOCK - 1) // BLOCK
    for number in range(tl.program_id(0), tokens * tiles, tl.num_programs(0)):
        token = tl.cast(number // tiles, tl.int64)
        column = (number % tiles) * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        total = tl.zeros([BLOCK], tl.float32)
        for choice in range(TOP_K):
            slot = tl.load(slots + token * TOP_K + choice)
            weight = tl.load(weights + token * TOP_K + choice)
            total += weight * tl.load(x + slot * x_row + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + token * out_row + column, total.to(out.dtype.element_ty), mask=inside)
