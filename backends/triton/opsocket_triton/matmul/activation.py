"""Activations on their way to a product: columns in a weight's order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket_triton.launch import launch


@triton.jit
def permute_columns(x, permutation, out, x_row, k, BLOCK: tl.constexpr):
    """out[r, j] = x[r, permutation[j]] for row r = program 0 and BLOCK columns of program 1; out: [M, K], dense."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < k
    column = tl.load(permutation + j, mask=inside, other=0)
    tl.store(out + row * k + j, tl.load(x + row * x_row + column, mask=inside), mask=inside)


def permute(x: torch.Tensor, permutation: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x [M, K] in the order in which a weight has its columns, in `out`."""
    rows, k = x.shape
    block = min(1024, triton.next_power_of_2(k))
    grid = (rows, triton.cdiv(k, block))
    launch(permute_columns, grid, x=x, permutation=permutation, out=out, x_row=x.stride(0), k=k, BLOCK=block)
    return out
