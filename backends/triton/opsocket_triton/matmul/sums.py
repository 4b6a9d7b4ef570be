"""Device functions: the sums of products of one tile over a run of a weight's slabs, in each kind of arithmetic."""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.functions import float_of_field


@triton.jit
def _spread(values, WIDTH: tl.constexpr):
    """[R, P] -> [R, P * WIDTH], each value WIDTH times."""
    if values.shape[1] == 1:
        return tl.broadcast_to(values, (values.shape[0], WIDTH))
    else:
        wide = tl.broadcast_to(values[:, :, None], (values.shape[0], values.shape[1], WIDTH))
        return tl.reshape(wide, (values.shape[0], values.shape[1] * WIDTH))


@triton.jit
def column_of(at, FIELD: tl.constexpr, FIELDS: tl.constexpr):
    """The column of a weight that field FIELD of stored element `at` of a row is."""
    return at // 32 * (32 * FIELDS) + FIELD * 32 + at % 32


@triton.jit
def _dequantized(
    stored, scale, minimum, scale_row, n, in_n, start, stop,
    FIELD: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """f32 [R, DEPTH] of one field of a tile of bytes, from byte `start` of each row; of GROUP 0 the codes alone."""
    codes = float_of_field(stored, FIELD, BITS, OFFSET)
    if GROUP == 0:
        return codes
    else:
        SHARED: tl.constexpr = 32 if GROUP % 32 == 0 and DEPTH % 32 == 0 else 16
        at = start + tl.arange(0, DEPTH // SHARED) * SHARED
        group = column_of(at, FIELD, 8 // BITS) // GROUP
        place = group[None, :].to(tl.int64) * scale_row + n[:, None]
        inside = in_n[:, None] & (at < stop)[None, :]
        s = tl.load(scale + place, mask=inside, other=0).to(tl.float32)
        value = codes * _spread(s, SHARED)
        if minimum is not None:
            m = tl.load(minimum + place, mask=inside, other=0).to(tl.float32)
            value -= _spread(m * s if minimum.dtype.element_ty == tl.int8 else m, SHARED)
        return value


@triton.jit
def float_sums(
    x, x_at, stored, w_at, n, in_n, scale, minimum, scale_row, k, first, last,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, OPERAND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """f32 [BM, BN] of x times the weight's transpose over its stored elements first to last of each row, without the
    scale of GROUP 0.

    x_at: offsets i64 [BM] of x's rows. w_at: of the weight's, i64 [BN]. OPERAND: what both are multiplied as, "f32" by
    f32 products and sums rounded to nearest, else by a matrix unit of that type. Codes become floats in registers.
    """
    FIELDS: tl.constexpr = 1 if BITS == 0 else 8 // BITS
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(first, last, DEPTH):
        at = start + tl.arange(0, DEPTH)
        tile = tl.load(stored + w_at[:, None] + at[None, :], mask=(at < last)[None, :], other=0)
        for field in tl.static_range(FIELDS):
            column = column_of(at, field, FIELDS)
            wanted = (at < last) & (column < k)
            rows = tl.load(x + x_at[:, None] + column[None, :], mask=wanted[None, :], other=0)
            if BITS == 0:
                weight = tile
            else:
                weight = _dequantized(
                    tile, scale, minimum, scale_row, n, in_n, start, last, field, BITS, OFFSET, GROUP, DEPTH
                )
            if OPERAND == "bf16":
                sums = tl.dot(rows.to(tl.bfloat16), tl.trans(weight.to(tl.bfloat16)), sums)
            elif OPERAND == "f16":
                sums = tl.dot(rows.to(tl.float16), tl.trans(weight.to(tl.float16)), sums)
            else:
                factor = tl.trans(weight.to(tl.float32))
                sums = tl.dot(rows.to(tl.float32), factor, sums, input_precision="ieee")
    return sums


@triton.jit
def vector_sums(
    x, x_row, x_rows, stored, w_at, n, in_n, scale, minimum, scale_row, k, first, last,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """f32 [ROWS, BN], as `float_sums`, for few rows: without a matrix unit, all threads along the weight's bytes.

    A thread holds pieces of 16 stored elements, the widest load there is where they are bytes, sums the products of
    each with x, and then multiplies by the scale of its group: which is what keeps the operations for each weight at
    about four (unpack, two to make a float, multiply and add), so that memory is the limit.
    """
    FIELDS: tl.constexpr = 1 if BITS == 0 else 8 // BITS
    r = tl.arange(0, ROWS)[:, None, None, None]
    p = tl.arange(0, DEPTH // 16) * 16
    j = tl.arange(0, 16)[None, None, None, :]
    sums = tl.zeros((ROWS, BN, DEPTH // 16), tl.float32)
    for start in range(first, last, DEPTH):
        at = start + p[None, None, :, None] + j
        tile = tl.load(stored + w_at[None, :, None, None] + at, mask=at < last, other=0)
        for field in tl.static_range(FIELDS):
            column = column_of(at, field, FIELDS)
            wanted = (at < last) & (column < k) & (r < x_rows)
            rows = tl.load(x + r * x_row + column, mask=wanted, other=0).to(tl.float32)
            if BITS == 0:
                sums += tl.sum(rows * tile.to(tl.float32), 3)
            else:
                part = tl.sum(rows * float_of_field(tile, field, BITS, OFFSET), 3)
                if GROUP == 0:
                    sums += part
                else:
                    group = column_of(start + p, field, FIELDS) // GROUP
                    where = group[None, None, :].to(tl.int64) * scale_row + n[None, :, None]
                    there = in_n[None, :, None] & (start + p < last)[None, None, :]
                    s = tl.load(scale + where, mask=there, other=0).to(tl.float32)
                    if minimum is not None:
                        m = tl.load(minimum + where, mask=there, other=0).to(tl.float32)
                        if minimum.dtype.element_ty == tl.int8:
                            part -= m * tl.sum(rows, 3)
                            sums += part * s
                        else:
                            sums += part * s - m * tl.sum(rows, 3)
                    else:
                        sums += part * s
    return tl.sum(sums, 2)


@triton.jit
def scaled_by_row(sums, scale, n, in_n, GROUP: tl.constexpr, BITS: tl.constexpr):
    """Sums [R, BN] times the scale of each of the weight's rows, where it has one for a whole row."""
    if BITS > 0 and GROUP == 0:
        return sums * tl.load(scale + n, mask=in_n, other=0).to(tl.float32)[None, :]
    else:
        return sums
