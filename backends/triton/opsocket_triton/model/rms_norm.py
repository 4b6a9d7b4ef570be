"""Root-mean-square norm, over rows or heads, with or without a residual."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import RMSNormPlan, RMSNormSpec
from opsocket_triton.launch import launch
from opsocket_triton.model.accepted import NORM
from opsocket_triton.model.rows import TILE, like

_WIDEST = 8192

ACCEPTED = NORM


@triton.jit
def norm_rows(
    x,
    weight,
    residual,
    joined,
    out,
    rows,
    heads,
    width,
    x_row,
    residual_row,
    out_row,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    FITS: tl.constexpr,
):
    """out = x / sqrt(mean(x^2) + eps) * weight of rows ROWS * program 0 and on, each `width` long, `heads` of them to a
    row of the arrays. residual: is added first, rounded, and kept in `joined`. FITS: BLOCK holds a row; else twice
    through it."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = number < rows
    row = (number // heads).to(tl.int64)
    first = (number % heads) * width
    x_at = (row * x_row + first)[:, None]
    out_at = (row * out_row + first)[:, None]
    residual_at = (row * residual_row)[:, None]
    joined_at = (row * width)[:, None]
    column = tl.arange(0, BLOCK)
    if FITS:
        inner = (column < width)[None, :]
        mask = inside[:, None] & inner
        value = tl.load(x + x_at + column[None, :], mask=mask, other=0.0)
        if residual is not None:
            other = tl.load(residual + residual_at + column[None, :], mask=mask, other=0.0)
            value = (value.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
            tl.store(joined + joined_at + column[None, :], value, mask=mask)
        wide = value.to(tl.float32)
        scale = _scale(tl.sum(wide * wide, 1), width, eps)
        gain = tl.load(weight + column, mask=column < width, other=0.0)
        tl.store(out + out_at + column[None, :], (wide * scale * gain[None, :]).to(out.dtype.element_ty), mask=mask)
    else:
        squares = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            at = start + column
            mask = inside[:, None] & (at < width)[None, :]
            value = tl.load(x + x_at + at[None, :], mask=mask, other=0.0)
            if residual is not None:
                other = tl.load(residual + residual_at + at[None, :], mask=mask, other=0.0)
                value = (value.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
                tl.store(joined + joined_at + at[None, :], value, mask=mask)
            wide = value.to(tl.float32)
            squares += wide * wide
        scale = _scale(tl.sum(squares, 1), width, eps)
        for start in range(0, width, BLOCK):
            at = start + column
            mask = inside[:, None] & (at < width)[None, :]
            value = tl.load(x + x_at + at[None, :], mask=mask, other=0.0)
            if residual is not None:
                # Anew, and not from `joined`: other lanes may have written it.
                other = tl.load(residual + residual_at + at[None, :], mask=mask, other=0.0)
                value = (value.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
            gain = tl.load(weight + at, mask=at < width, other=0.0)
            y = value.to(tl.float32) * scale * gain[None, :]
            tl.store(out + out_at + at[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _scale(squares, width, eps):
    """1 / sqrt(mean + eps) as [ROWS, 1], each step rounded to nearest: the chips' own roots are approximations."""
    mean = tl.math.div_rn(squares, width * 1.0)
    return tl.math.div_rn(1.0, tl.math.sqrt_rn(mean + eps))[:, None]


class TritonRMSNorm(RMSNormPlan):
    """x, and the residual, read once; y, and the sum, written once. Memory is the limit; few rows are limited by the
    launch and the latency of one row."""

    capture_level = "any"

    def _run(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor | None,
        out: torch.Tensor | None,
        residual_out: torch.Tensor | None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, RMSNormSpec)
        y = like(x) if out is None else out
        joined = None if residual is None else like(x) if residual_out is None else residual_out
        heads = spec.heads or 1
        rows = x.shape[0] * heads
        block = min(_WIDEST, triton.next_power_of_2(spec.width))
        tile = max(1, TILE // block)
        launch(
            norm_rows,
            (triton.cdiv(rows, tile),),
            warps=max(4, block // 512),  # 16 f32 of each lane of 32 stay in registers across the root's own code
            x=x,
            weight=weight,
            residual=residual,
            joined=joined,
            out=y,
            rows=rows,
            heads=heads,
            width=spec.width,
            x_row=x.stride(0),
            residual_row=0 if residual is None else residual.stride(0),
            out_row=y.stride(0),
            eps=spec.eps,
            ROWS=tile,
            BLOCK=block,
            FITS=block >= spec.width,
        )
        return y if joined is None else (y, joined)
