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
def column_of(at, field, FIELDS: tl.constexpr):
    """The column of a weight that field `field` of stored element `at` of a row is."""
    return at // 32 * (32 * FIELDS) + field * 32 + at % 32


@triton.jit
def _dequantized(
    stored, scale, minimum, scale_row, n, in_n, start, stop, field,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """f32 [R, DEPTH] of one field of a tile of bytes, from byte `start` of each row; of GROUP 0 the codes alone."""
    codes = float_of_field(stored, field, BITS, OFFSET)
    if GROUP == 0:
        return codes
    else:
        SHARED: tl.constexpr = 32 if GROUP % 32 == 0 and DEPTH % 32 == 0 else 16
        at = start + tl.arange(0, DEPTH // SHARED) * SHARED
        group = column_of(at, field, 8 // BITS) // GROUP
        place = group[None, :].to(tl.int64) * scale_row + n[:, None]
        inside = in_n[:, None] & (at < stop)[None, :]
        s = tl.load(scale + place, mask=inside, other=0).to(tl.float32)
        value = codes * _spread(s, SHARED)
        if minimum is not None:
            m = tl.load(minimum + place, mask=inside, other=0).to(tl.float32)
            value -= _spread(m * s if minimum.dtype.element_ty == tl.int8 else m, SHARED)
        return value


@triton.jit
def _add_field(
    sums, field, x, x_at, k, tile, start, last, n, in_n, scale, minimum, scale_row,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, OPERAND: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """sums + the products of a field of a tile, DEPTH stored elements of each row, with x."""
    at = start + tl.arange(0, DEPTH)
    column = column_of(at, field, 1 if BITS == 0 else 8 // BITS)
    wanted = (at < last) & (column < k)
    rows = tl.load(x + x_at[:, None] + column[None, :], mask=wanted[None, :], other=0)
    if BITS == 0:
        weight = tile
    else:
        weight = _dequantized(tile, scale, minimum, scale_row, n, in_n, start, last, field, BITS, OFFSET, GROUP, DEPTH)
    if OPERAND == "bf16":
        return tl.dot(rows.to(tl.bfloat16), tl.trans(weight.to(tl.bfloat16)), sums)
    elif OPERAND == "f16":
        return tl.dot(rows.to(tl.float16), tl.trans(weight.to(tl.float16)), sums)
    else:
        return tl.dot(rows.to(tl.float32), tl.trans(weight.to(tl.float32)), sums, input_precision="ieee")


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
        if FIELDS < 4:
            for field in tl.static_range(FIELDS):
                sums = _add_field(
                    sums, field, x, x_at, k, tile, start, last, n, in_n, scale, minimum, scale_row,
                    BITS, OFFSET, GROUP, OPERAND, DEPTH,
                )  # fmt: skip
        else:
            for field in range(FIELDS):  # unrolled, they would all be in registers at once
                sums = _add_field(
                    sums, field, x, x_at, k, tile, start, last, n, in_n, scale, minimum, scale_row,
                    BITS, OFFSET, GROUP, OPERAND, DEPTH,
                )  # fmt: skip
    return sums


@triton.jit
def _add_field_of_rows(
    sums, field, x, x_row, x_rows, k, tile, start, last, n, scale, minimum, scale_row,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """sums [ROWS, BN, DEPTH / 16] + the products of a field of a tile [1, BN, DEPTH / 16, 16] with x."""
    FIELDS: tl.constexpr = 1 if BITS == 0 else 8 // BITS
    r = tl.arange(0, ROWS)[:, None, None, None]
    piece = start + tl.arange(0, DEPTH // 16) * 16
    at = piece[None, None, :, None] + tl.arange(0, 16)[None, None, None, :]
    column = column_of(at, field, FIELDS)
    wanted = (at < last) & (column < k) & (r < x_rows)
    rows = tl.load(x + r * x_row + column, mask=wanted, other=0).to(tl.float32)
    if BITS == 0:
        return sums + tl.sum(rows * tile.to(tl.float32), 3)
    else:
        codes = float_of_field(tile, field, BITS, OFFSET)
        if GROUP == 0:
            return sums + tl.sum(rows * codes, 3)
        else:
            group = column_of(piece, field, FIELDS) // GROUP
            place = group[None, None, :].to(tl.int64) * scale_row + n[None, :, None]
            inside = (piece < last)[None, None, :]
            s = tl.load(scale + place, mask=inside, other=0).to(tl.float32)
            if minimum is None:
                return sums + tl.sum(rows * codes, 3) * s
            else:
                least = tl.load(minimum + place, mask=inside, other=0).to(tl.float32)[:, :, :, None]
                if minimum.dtype.element_ty == tl.int8:
                    return sums + tl.sum(rows * (codes - least), 3) * s
                else:
                    return sums + tl.sum(rows * (codes * s[:, :, :, None] - least), 3)


@triton.jit
def vector_sums(
    x, x_row, x_rows, stored, w_at, n, scale, minimum, scale_row, k, first, last,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """f32 [ROWS, BN], as `float_sums`, for few rows: without a matrix unit, all threads along the weight's bytes.

    n: as numbers of which the compiler does not know that they follow one another, or it would give the threads another
    order for scales than for codes, and move one or the other between them. A thread holds pieces of 16 stored
    elements, the widest load there is where they are bytes, sums the products of each with x, and then multiplies by
    the scale of its group: which keeps the operations for each weight at about four (unpack, two to make a float,
    multiply and add; five with a minimum), so that memory is the limit.
    """
    FIELDS: tl.constexpr = 1 if BITS == 0 else 8 // BITS
    sums = tl.zeros((ROWS, BN, DEPTH // 16), tl.float32)
    for start in range(first, last, DEPTH):
        piece = start + tl.arange(0, DEPTH // 16) * 16
        at = piece[None, None, :, None] + tl.arange(0, 16)[None, None, None, :]
        tile = tl.load(stored + w_at[None, :, None, None] + at, mask=at < last, other=0)
        if FIELDS < 4:
            for field in tl.static_range(FIELDS):
                sums = _add_field_of_rows(
                    sums, field, x, x_row, x_rows, k, tile, start, last, n, scale, minimum, scale_row,
                    BITS, OFFSET, GROUP, ROWS, DEPTH,
                )  # fmt: skip
        else:
            for field in range(FIELDS):  # unrolled, they would all be in registers at once
                sums = _add_field_of_rows(
                    sums, field, x, x_row, x_rows, k, tile, start, last, n, scale, minimum, scale_row,
                    BITS, OFFSET, GROUP, ROWS, DEPTH,
                )  # fmt: skip
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
def _add_piece(
    sums, piece, codes, x_at, x_scale, x_sums, m, in_m, rows, tile, start, last, n, in_n, scale, minimum, scale_row,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """sums + the scaled products of piece number `piece`, of PIECE columns, of a tile of 32 bytes of each row."""
    field = piece * PIECE // 32
    at = start + tl.arange(0, 32)
    column = column_of(at, field, 8 // BITS)
    rows_of_x = tl.load(codes + x_at[:, None] + column[None, :], mask=(at < last)[None, :], other=0)
    if PIECE == 16:
        rows_of_x = tl.where((at % 32 // 16 == piece % 2)[None, :], rows_of_x, 0).to(tl.int8)
    total = tl.dot(rows_of_x, tl.trans(signed_field(tile, field, BITS, OFFSET)))
    return _scaled(
        sums, total, x_scale, x_sums, m, in_m, rows, n, in_n, scale, minimum, scale_row,
        column_of(start, field, 8 // BITS) + piece * PIECE % 32, GROUP, X_GROUP, PIECE,
    )  # fmt: skip


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
        if PIECE == 0 or PIECE == DEPTH * FIELDS:
            total = tl.zeros((BM, BN), tl.int32)
            for field in tl.static_range(FIELDS):
                column = column_of(at, field, FIELDS)
                rows_of_x = tl.load(codes + x_at[:, None] + column[None, :], mask=inside[None, :], other=0)
                factor = tl.trans(signed_field(tile, field, BITS, OFFSET))
                if PIECE == 0:
                    sums = tl.dot(rows_of_x, factor, sums)
                else:
                    total = tl.dot(rows_of_x, factor, total)
            if PIECE > 0:
                sums = _scaled(
                    sums, total, x_scale, x_sums, m, in_m, rows, n, in_n, scale, minimum, scale_row, start * FIELDS,
                    GROUP, X_GROUP, PIECE,
                )  # fmt: skip
        elif FIELDS == 2 and PIECE == 32:
            for field in tl.static_range(FIELDS):
                sums = _add_piece(
                    sums, field, codes, x_at, x_scale, x_sums, m, in_m, rows, tile, start, last, n, in_n, scale,
                    minimum, scale_row, BITS, OFFSET, GROUP, X_GROUP, PIECE,
                )  # fmt: skip
        else:
            for piece in range(FIELDS * 32 // PIECE):  # unrolled, they would all be in registers at once
                sums = _add_piece(
                    sums, piece, codes, x_at, x_scale, x_sums, m, in_m, rows, tile, start, last, n, in_n, scale,
                    minimum, scale_row, BITS, OFFSET, GROUP, X_GROUP, PIECE,
                )  # fmt: skip
    return sums


@triton.jit
def scaled_by_row(sums, scale, n, in_n, GROUP: tl.constexpr, BITS: tl.constexpr):
    """Sums [R, BN] times the scale of each of the weight's rows, where it has one for a whole row."""
    if BITS > 0 and GROUP == 0:
        return sums * tl.load(scale + n, mask=in_n, other=0).to(tl.float32)[None, :]
    else:
        return sums
