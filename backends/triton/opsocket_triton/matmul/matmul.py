"""Matrix products with weights in any format."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl

from opsocket.operators import MatmulPlan, PackedWeight
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_triton.launch import launch
from opsocket_triton.matmul import tiles, weights
from opsocket_triton.matmul.activation import permute
from opsocket_triton.matmul.operands import compute_units, operand_of
from opsocket_triton.matmul.rows import OverWeights
from opsocket_triton.matmul.sums import float_sums, scaled_by_row, vector_sums
from opsocket_triton.workspace import Workspace

_MOST_SPLIT_ROWS: Final = 64
"""More rows give enough tiles by themselves, and partial sums of more would cost more than they save."""


@triton.jit
def _store(sums, bias, out, partial, m, n, in_m, in_n, rows, columns, out_row, SPLIT: tl.constexpr):
    """A tile [R, C] of y, with its bias; or of one part of the sum, to be added up by `add_parts`."""
    inside = in_m[:, None] & in_n[None, :]
    if SPLIT:
        before = tl.program_id(1).to(tl.int64) * rows * columns
        tl.store(partial + before + m[:, None].to(tl.int64) * columns + n[None, :], sums, mask=inside)
    else:
        if bias is not None:
            sums += tl.load(bias + n, mask=in_n, other=0)[None, :]
        place = m[:, None].to(tl.int64) * out_row + n[None, :]
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def product_tiles(
    x, stored, scale, minimum, bias, out, partial,
    x_row, w_row, scale_row, out_row, rows, columns, k, width, part,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, OPERAND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile [BM, BN] of y = x W^T + b over one part of K; program 0: the tile, 1: the part.

    Tiles that share the weight's rows are neighbours, eight of x at a time, so that both are read from L2 again.
    """
    tile = tl.program_id(0)
    down, across = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    band = tile // (8 * across)
    height = tl.minimum(down - band * 8, 8)
    within = tile - band * 8 * across
    m = (band * 8 + within % height) * BM + tl.arange(0, BM)
    n = within // height * BN + tl.arange(0, BN)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, width)
    sums = float_sums(
        x, tl.minimum(m, rows - 1).to(tl.int64) * x_row, stored, tl.minimum(n, columns - 1).to(tl.int64) * w_row,
        n, n < columns, scale, minimum, scale_row, k, first, last, BITS, OFFSET, GROUP, OPERAND, BM, BN, DEPTH,
    )  # fmt: skip
    sums = scaled_by_row(sums, scale, n, n < columns, GROUP, BITS)
    _store(sums, bias, out, partial, m, n, m < rows, n < columns, rows, columns, out_row, SPLIT)


@triton.jit
def product_rows(
    x, stored, scale, minimum, bias, out, partial,
    x_row, w_row, scale_row, out_row, rows, columns, k, width, part,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """All rows of y = x W^T + b, at most ROWS, and BN columns, program 0, over one part of K, program 1.

    Reads each byte of the weight once; limited by memory, and for codes of 4 bits nearly as much by the operations
    that make them floats.
    """
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, width)
    sums = vector_sums(
        x, x_row, rows, stored, tl.minimum(n, columns - 1).to(tl.int64) * w_row, n, n < columns,
        scale, minimum, scale_row, k, first, last, BITS, OFFSET, GROUP, ROWS, BN, DEPTH,
    )  # fmt: skip
    sums = scaled_by_row(sums, scale, n, n < columns, GROUP, BITS)
    _store(sums, bias, out, partial, m, n, m < rows, n < columns, rows, columns, out_row, SPLIT)


@triton.jit
def add_parts(partial, bias, out, out_row, size, columns, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """y = the sum of PARTS partial results f32 [rows, columns], always in this order, + b; BLOCK elements each."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    sums = tl.zeros((BLOCK,), tl.float32)
    for part in range(PARTS):
        sums += tl.load(partial + part * size + at, mask=inside, other=0)
    m, n = at // columns, at % columns
    if bias is not None:
        sums += tl.load(bias + n, mask=inside, other=0)
    tl.store(out + m * out_row + n, sums.to(out.dtype.element_ty), mask=inside)


class TritonMatmul(OverWeights, MatmulPlan):
    """Few rows by `product_rows`, more by `product_tiles`; K in parts where the columns are too few for the device."""

    capture_level = "any"

    def _setup(self) -> None:
        self._backend = "hip" if self.session.device.arch.startswith("gfx") else "cuda"
        self._units = compute_units(self.session)
        self._workspace = Workspace(self)

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(len(x), packed.n, dtype=TORCH_DTYPES[self.spec.out_dtype], device=x.device)
        if len(x) == 0:
            return out
        content: weights.Weight = packed.content
        if content.permutation is not None:
            x = permute(x, content.permutation, self._workspace.take("permuted", x.shape, x.dtype))
        self._multiply(x, content, bias, out)
        return out

    def _multiply(self, x: torch.Tensor, content: weights.Weight, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        rows, columns = out.shape
        operand = operand_of(self.session.device, self.spec, content)
        few = rows <= tiles.vector_rows(self._backend, operand)
        tile = tiles.vector_tile(rows) if few else tiles.float_tile(self._backend, operand, rows)
        count = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        most = self._units if rows <= _MOST_SPLIT_ROWS else 0
        part = tiles.part(content.width, tile.depth, count, most)
        parts = triton.cdiv(content.width, part)
        partial = self._workspace.take("partial", (parts, rows, columns), torch.float32) if parts > 1 else None
        form: dict[str, Any] = {"ROWS": tile.rows} if few else {"BM": tile.rows, "OPERAND": operand}
        launch(
            product_rows if few else product_tiles,
            (count, parts),
            warps=tile.warps,
            stages=tile.stages,
            x=x,
            bias=None if parts > 1 else bias,
            out=out,
            partial=partial,
            x_row=x.stride(0),
            out_row=out.stride(0),
            rows=rows,
            columns=columns,
            part=part,
            BN=tile.columns,
            DEPTH=tile.depth,
            SPLIT=parts > 1,
            **form,
            **weights.arguments(content, self.spec.k),
        )
        if partial is not None:
            block = min(1024, triton.next_power_of_2(rows * columns))
            launch(
                add_parts,
                (triton.cdiv(rows * columns, block),),
                partial=partial,
                bias=bias,
                out=out,
                out_row=out.stride(0),
                size=rows * columns,
                columns=columns,
                PARTS=parts,
                BLOCK=block,
            )
