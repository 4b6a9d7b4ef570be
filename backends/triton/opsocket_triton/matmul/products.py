"""Kernels of products: a tile of y = x W^T + b, over all of K or a part of it."""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.matmul.accepted import PRODUCTS
from opsocket_triton.matmul.sums import float_sums, integer_sums, scaled_by_row, vector_sums

ACCEPTED = PRODUCTS


@triton.jit
def tile_at(number, rows, columns, BM: tl.constexpr, BN: tl.constexpr):
    """Row and column numbers of a tile of y. Tiles that share the weight's rows are neighbours, eight of x at a time,
    so that both are read again from L2."""
    down, across = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    band = number // (8 * across)
    height = tl.minimum(down - band * 8, 8)
    within = number - band * 8 * across
    m = (band * 8 + within % height) * BM + tl.arange(0, BM)
    return m, within // height * BN + tl.arange(0, BN)


@triton.jit
def store(sums, bias, out, partial, m, n, in_m, in_n, rows, columns, out_row, SPLIT: tl.constexpr):
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


@triton.jit(do_not_specialize=["rows"])
def product_tiles(
    x, stored, scale, minimum, bias, out, partial,
    x_row, w_row, scale_row, out_row, rows, columns, k, width, part,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, OPERAND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile [BM, BN] of y = x W^T + b over one part of K; program 0: the tile, 1: the part.

    Reads x once for each tile across, and the weight once for each tile down, from memory the first time. Limited by
    memory below some hundred rows; beyond, by the products or, of OPERAND "f32" on NVIDIA, by operations without
    matrix units.
    """
    m, n = tile_at(tl.program_id(0), rows, columns, BM, BN)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, width)
    sums = float_sums(
        x, tl.minimum(m, rows - 1).to(tl.int64) * x_row, stored, tl.minimum(n, columns - 1).to(tl.int64) * w_row,
        n, n < columns, scale, minimum, scale_row, k, first, last, BITS, OFFSET, GROUP, OPERAND, BM, BN, DEPTH,
    )  # fmt: skip
    sums = scaled_by_row(sums, scale, n, n < columns, GROUP, BITS)
    store(sums, bias, out, partial, m, n, m < rows, n < columns, rows, columns, out_row, SPLIT)


@triton.jit(do_not_specialize=["rows"])
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
    near = tl.minimum(n, columns - 1)
    sums = vector_sums(
        x, x_row, rows, stored, near.to(tl.int64) * w_row, near, scale, minimum, scale_row, k, first, last,
        BITS, OFFSET, GROUP, ROWS, BN, DEPTH,
    )  # fmt: skip
    sums = scaled_by_row(sums, scale, n, n < columns, GROUP, BITS)
    store(sums, bias, out, partial, m, n, m < rows, n < columns, rows, columns, out_row, SPLIT)


@triton.jit(do_not_specialize=["rows"])
def product_codes(
    codes, x_scale, x_sums, stored, scale, minimum, bias, out, partial,
    codes_row, w_row, scale_row, out_row, rows, columns, width, part,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, PIECE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """As `product_tiles`, of int8 codes by matrix units; their scales, and sums of PIECE codes, as `quantize_rows`."""
    m, n = tile_at(tl.program_id(0), rows, columns, BM, BN)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, width)
    in_m, in_n = m < rows, n < columns
    sums = integer_sums(
        codes, tl.minimum(m, rows - 1).to(tl.int64) * codes_row, x_scale, x_sums, m, in_m, rows,
        stored, tl.minimum(n, columns - 1).to(tl.int64) * w_row, n, in_n, scale, minimum, scale_row, first, last,
        BITS, OFFSET, GROUP, X_GROUP, PIECE, BM, BN, DEPTH,
    )  # fmt: skip
    if PIECE > 0 or not SPLIT:  # sums of integers stay integers until they are whole
        sums = scaled_by_row(sums.to(tl.float32), scale, n, in_n, GROUP, BITS)
        if X_GROUP == 0:
            sums *= tl.load(x_scale + m, mask=in_m, other=0)[:, None]
    store(sums, bias, out, partial, m, n, in_m, in_n, rows, columns, out_row, SPLIT)


@triton.jit(do_not_specialize=["size", "columns", "parts"])
def add_parts(
    partial, x_scale, scale, bias, out, out_row, size, columns, parts, BLOCK: tl.constexpr
):  # fmt: skip
    """y = the sum of `parts` partial results [rows, columns], always in this order, + b; BLOCK elements of y.

    i32 sums of codes are multiplied by the scales of their rows, which f32 sums have been already: None.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    sums = tl.zeros((BLOCK,), partial.dtype.element_ty)
    for part in range(parts):
        sums += tl.load(partial + part * size + at, mask=inside, other=0)
    m, n = at // columns, at % columns
    y = sums.to(tl.float32)
    if scale is not None:
        y *= tl.load(scale + n, mask=inside, other=0).to(tl.float32)
        y *= tl.load(x_scale + m, mask=inside, other=0)
    if bias is not None:
        y += tl.load(bias + n, mask=inside, other=0)
    tl.store(out + m * out_row + n, y.to(out.dtype.element_ty), mask=inside)
