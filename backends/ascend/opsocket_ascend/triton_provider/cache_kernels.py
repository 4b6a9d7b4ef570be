"""Kernels of the cache for vector cores: a token's heads, or some of them, are one copy each way.

Planes as `opsocket_ascend.layouts` has them: codes (block, token, head, dim), scales (block, head, token). A program
goes through tiles of HEADS heads of one token, in steps of the grid, which is as wide as the chip has vector cores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.cache.codes import encode_integer


@triton.jit(do_not_specialize=("heads", "block_size"))
def write_tokens(
    table, values, plane, stored, static, stride, heads, block_size,
    SCALE: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Codes i8 of `values` [T, heads, DIM], and their scales where SCALE is "token_head", into their slots.

    table: i64[N + 1, 2], (N, -), then the row in values and the slot of each token. static: f32, the scale of the
    tensor, of heads, or of channels [heads, DIM], which divides as it is. A token's own is amax / 127, and codes of a
    zero row are 0.
    """
    tiles = (heads + HEADS - 1) // HEADS
    total = tl.load(table).to(tl.int32) * tiles
    column = tl.arange(0, WIDE)
    for number in range(tl.program_id(0), total, tl.num_programs(0)):
        token = number // tiles
        head = (number % tiles) * HEADS + tl.arange(0, HEADS)
        row = tl.load(table + 2 + 2 * token)
        slot = tl.load(table + 3 + 2 * token)
        mask = (head < heads)[:, None] & (column < DIM)[None, :]
        place = head[:, None] * DIM + column[None, :]
        x = tl.load(values + row * stride + place, mask=mask, other=0.0).to(tl.float32)
        if SCALE == "token_head":
            # As integers, the bits of sizes rise with the sizes, and those of NaN lie above them all.
            size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            scale = tl.math.div_rn(tl.max(size, 1).to(tl.float32, bitcast=True), 127.0)
            rounded = scale.to(stored.dtype.element_ty)
            block = slot // block_size
            where = stored + (block * heads * block_size + slot % block_size) + head * block_size
            tl.store(where, rounded, mask=head < heads)
            scale = rounded.to(tl.float32)[:, None]
            # Of a scale of 0 there are only values so small that they round to 0 as they are.
            x = tl.math.div_rn(x, tl.where(scale == 0.0, 1.0, scale))
        elif SCALE == "tensor":
            x = tl.math.div_rn(x, tl.load(static))
        elif SCALE == "head":
            x = tl.math.div_rn(x, tl.load(static + head, mask=head < heads, other=1.0)[:, None])
        else:
            x = tl.math.div_rn(x, tl.load(static + place, mask=mask, other=1.0))
        code = encode_integer(x, 127).to(tl.int8)
        tl.store(plane + slot * heads * DIM + place, code, mask=mask)


@triton.jit(do_not_specialize=("heads", "block_size"))
def read_tokens(
    table, out, plane, stored, static, heads, block_size,
    SCALE: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out [N, heads, DIM] of slots of a plane of codes or floats, times their scales in f32, rounded once.

    table: i64[N + 1, 1], N, then the slots. static: as in `write_tokens`; SCALE "none": values as they are.
    """
    tiles = (heads + HEADS - 1) // HEADS
    total = tl.load(table).to(tl.int32) * tiles
    column = tl.arange(0, WIDE)
    for number in range(tl.program_id(0), total, tl.num_programs(0)):
        token = number // tiles
        head = (number % tiles) * HEADS + tl.arange(0, HEADS)
        slot = tl.load(table + 1 + token)
        mask = (head < heads)[:, None] & (column < DIM)[None, :]
        place = head[:, None] * DIM + column[None, :]
        x = tl.load(plane + slot * heads * DIM + place, mask=mask, other=0).to(tl.float32)
        if SCALE == "token_head":
            block = slot // block_size
            where = stored + (block * heads * block_size + slot % block_size) + head * block_size
            x *= tl.load(where, mask=head < heads, other=0.0).to(tl.float32)[:, None]
        elif SCALE == "tensor":
            x *= tl.load(static)
        elif SCALE == "head":
            x *= tl.load(static + head, mask=head < heads, other=0.0)[:, None]
        elif SCALE == "channel":
            x *= tl.load(static + place, mask=mask, other=0.0)
        at = tl.cast(token, tl.int64) * heads * DIM
        tl.store(out + at + place, x.to(out.dtype.element_ty), mask=mask)
