"""Activations on their way to a product: columns in a weight's order, or int8 codes with a scale per row or group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from opsocket.operators import QuantizeActivationPlan
from opsocket_triton.launch import launch
from opsocket_triton.workspace import Workspace


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
    block = 1024
    grid = (rows, triton.cdiv(k, block))
    launch(permute_columns, grid, x=x, permutation=permutation, out=out, x_row=x.stride(0), k=k, BLOCK=block)
    return out


@triton.jit
def _read(x, permutation, j, k):
    inside = j < k
    column = j if permutation is None else tl.load(permutation + j, mask=inside, other=0)
    return tl.load(x + column, mask=inside, other=0).to(tl.float32)


@triton.jit
def _magnitude(values, AXIS: tl.constexpr):
    """The largest magnitude of f32 values along an axis; NaN where there is one: as integers, it is above infinity."""
    bits = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, AXIS)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _codes(values, scale):
    """i8 clamp(round_half_even(values / scale), -127, 127); 0 where the scale is 0, and for NaN."""
    # Of a scale of 0 there are only values so small that they round to 0 as they are.
    quotient = tl.math.div_rn(values, tl.where(scale == 0.0, 1.0, scale))
    quotient = tl.where(quotient != quotient, 0.0, quotient)
    # 1.5 * 2^23 leaves no bit for a fraction: the sum is rounded to an integer, ties to even.
    rounded = (tl.minimum(tl.maximum(quotient, -127.0), 127.0) + 12582912.0) - 12582912.0
    return rounded.to(tl.int8)


@triton.jit(do_not_specialize=["rows"])
def quantize_rows(
    x, permutation, codes, scale, sums, x_row, codes_row, rows, k, width, part,
    X_GROUP: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes i8 of row r = program 0 and `part` columns of program 1: x / s to nearest even, s = amax / 127.

    X_GROUP 0: amax is that of the whole row, which every program of it looks for; scale: f32 [M]. Else of X_GROUP
    columns; scale: f32 [width / X_GROUP, M]. sums: f32 [width / PIECE, M], of the codes of PIECE columns, or None.
    Columns from k to `width` have code 0. Reads x once or twice, the second time from cache; limited by memory.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * x_row
    if X_GROUP == 0:
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, k, BLOCK):
            values = _read(x, permutation, start + tl.arange(0, BLOCK), k)
            bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            largest = tl.maximum(largest.to(tl.int32, bitcast=True), bits).to(tl.float32, bitcast=True)
        s = tl.math.div_rn(_magnitude(largest, 0), 127.0)
        if tl.program_id(1) == 0:
            tl.store(scale + row, s)
    first = tl.program_id(1) * part
    for start in range(first, tl.minimum(first + part, width), BLOCK):
        j = start + tl.arange(0, BLOCK)
        values = _read(x, permutation, j, k)
        if X_GROUP == 0:
            found = _codes(values, s)
        else:
            grouped = tl.reshape(values, (BLOCK // X_GROUP, X_GROUP))
            s = tl.math.div_rn(_magnitude(grouped, 1), 127.0)
            found = tl.reshape(_codes(grouped, s[:, None]), (BLOCK,))
            group = start // X_GROUP + tl.arange(0, BLOCK // X_GROUP)
            tl.store(scale + group * rows + row, s, mask=group * X_GROUP < width)
        tl.store(codes + row * codes_row + j, found, mask=j < width)
        if sums is not None:
            total = tl.sum(tl.reshape(found.to(tl.int32), (BLOCK // PIECE, PIECE)), 1)
            piece = start // PIECE + tl.arange(0, BLOCK // PIECE)
            tl.store(sums + piece * rows + row, total.to(tl.float32), mask=piece * PIECE < width)


@dataclass(frozen=True, eq=False)
class Quantized:
    """Rows as a product of codes takes them. codes: i8 [M, width]. scale: f32 [M], or [width / 32, M] of groups. sums:
    f32 [width / piece, M], or None."""

    codes: torch.Tensor
    scale: torch.Tensor
    sums: torch.Tensor | None


def quantize(
    x: torch.Tensor,
    permutation: torch.Tensor | None,
    into: Quantized,
    group: int,
    piece: int = 32,
    units: int = 128,
) -> Quantized:
    """x [M, K] as codes, in the arrays of `into`; its columns by a permutation. group: of a scale; 0: a whole row."""
    (rows, k), width = x.shape, into.codes.shape[1]
    block = 1024
    # A row is one program's where that is enough for the device: of more, each looks through the row for its maximum.
    part = width if group == 0 and rows >= units else block
    launch(
        quantize_rows,
        (rows, triton.cdiv(width, part)),
        x=x,
        permutation=permutation,
        codes=into.codes,
        scale=into.scale,
        sums=into.sums,
        x_row=x.stride(0),
        codes_row=into.codes.stride(0),
        rows=rows,
        k=k,
        width=width,
        part=part,
        X_GROUP=group,
        PIECE=0 if into.sums is None else piece,
        BLOCK=block,
    )
    return into


def room(workspace: Workspace, rows: int, width: int, group: int, piece: int, with_sums: bool) -> Quantized:
    """A plan's memory for so many rows of `width` codes."""
    scales = (rows,) if group == 0 else (width // group, rows)
    return Quantized(
        workspace.take("codes", (rows, width), torch.int8),
        workspace.take("scales", scales, torch.float32),
        workspace.take("sums", (width // piece, rows), torch.float32) if with_sums else None,
    )


class TritonQuantizeActivation(QuantizeActivationPlan):
    """Scheme i8_token."""

    capture_level = "any"

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, k = x.shape
        codes = torch.empty(rows, k, dtype=torch.int8, device=x.device)
        found = quantize(x, None, Quantized(codes, torch.empty(rows, device=x.device), None), 0)
        return found.codes, found.scale
