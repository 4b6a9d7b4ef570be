"""Device functions: the sums of products of one tile over a run of a weight's slabs, in each kind of arithmetic."""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.functions import float_of_field, float_of_sum, signed_field


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
def _scaled(
    sums, total, x_scale, x_sums, m, in_m, rows, n, in_n, scale, minimum, scale_row, column,
    GROUP: tl.constexpr, X_GROUP: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """sums + the exact i32 products of a piece of columns from `column` on, times its scales, less its minimum."""
    part = float_of_sum(total)
    if GROUP > 0:
        place = tl.full((1,), column // GROUP, tl.int64) * scale_row + n
        s = tl.load(scale + place, mask=in_n, other=0).to(tl.float32)[None, :]
        if minimum is not None:
            least = tl.load(minimum + place, mask=in_n, other=0).to(tl.float32)[None, :]
            where = tl.full((1,), column // PIECE, tl.int64) * rows + m
            count = tl.load(x_sums + where, mask=in_m, other=0)[:, None]
            if minimum.dtype.element_ty == tl.int8:
                part = (part - least * count) * s
            else:
                part = part * s - least * count
        else:
            part = part * s
    if X_GROUP > 0:
        group = tl.full((1,), column // X_GROUP, tl.int64) * rows + m
        part = part * tl.load(x_scale + group, mask=in_m, other=0)[:, None]
    return sums + part


@triton.jit
def integer_sums(
    codes, x_at, x_scale, x_sums, m, in_m, rows, stored, w_at, n, in_n, scale, minimum, scale_row, first, last,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, PIECE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[BM, BN] of codes of x times those of the weight's transpose over its stored elements first to last, exact in i32
    within a piece of PIECE columns, by matrix units; f32 sums of pieces times the scales that are not a whole row's.

    PIECE 0: both have one scale for a row, and the sum of all of K is i32. A multiple of DEPTH: all fields of DEPTH
    stored elements. 32: one field of 32. 16: half of that, the other half of x set to 0, since no unit has a product
    that is less deep.
    """
    FIELDS: tl.constexpr = 8 // BITS
    if PIECE == 0:
        sums = tl.zeros((BM, BN), tl.int32)
    else:
        sums = tl.zeros((BM, BN), tl.float32)
    for start in range(first, last, DEPTH):
        at = start + tl.arange(0, DEPTH)
        inside = at < last
        tile = tl.load(stored + w_at[:, None] + at[None, :], mask=inside[None, :], other=0)
        total = tl.zeros((BM, BN), tl.int32)
        for field in tl.static_range(FIELDS):
            column = column_of(at, field, FIELDS)
            rows_of_x = tl.load(codes + x_at[:, None] + column[None, :], mask=inside[None, :], other=0)
            factor = tl.trans(signed_field(tile, field, BITS, OFFSET))
            if PIECE == 0:
                sums = tl.dot(rows_of_x, factor, sums)
            elif PIECE == DEPTH * FIELDS:
                total = tl.dot(rows_of_x, factor, total)
            elif PIECE == 32:
                sums = _scaled(
                    sums, tl.dot(rows_of_x, factor), x_scale, x_sums, m, in_m, rows, n, in_n, scale, minimum,
                    scale_row, column_of(start, field, FIELDS), GROUP, X_GROUP, PIECE,
                )  # fmt: skip
            else:
                for half in tl.static_range(2):
                    some = tl.where((at % 32 // 16 == half)[None, :], rows_of_x, 0).to(tl.int8)
                    sums = _scaled(
                        sums, tl.dot(some, factor), x_scale, x_sums, m, in_m, rows, n, in_n, scale, minimum,
                        scale_row, column_of(start, field, FIELDS) + half * 16, GROUP, X_GROUP, PIECE,
                    )  # fmt: skip
        if PIECE == DEPTH * FIELDS:
            sums = _scaled(
                sums, total, x_scale, x_sums, m, in_m, rows, n, in_n, scale, minimum, scale_row, start * FIELDS,
                GROUP, X_GROUP, PIECE,
            )  # fmt: skip
    return sums


@triton.jit
def scaled_by_row(sums, scale, n, in_n, GROUP: tl.constexpr, BITS: tl.constexpr):
    """Sums [R, BN] times the scale of each of the weight's rows, where it has one for a whole row."""
    if BITS > 0 and GROUP == 0:
        return sums * tl.load(scale + n, mask=in_n, other=0).to(tl.float32)[None, :]
    else:
        return sums
