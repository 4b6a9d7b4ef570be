"""Activations as int8 codes with a scale per row, for vector cores: a row is gone through twice, in runs of BLOCK."""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.cache.codes import encode_integer


@triton.jit(do_not_specialize=("rows", "width", "x_row"))
def quantize_tokens(x, codes, scales, rows, width, x_row, BLOCK: tl.constexpr):
    """codes i8[rows, width] = x / s to nearest even, s = amax / 127 f32[rows], of x[rows, width]; all 0 of a zero row.

    Amaxes of columns are divided before the largest is looked for, which is the same, since rounding keeps their order:
    of scalars triton-adapter-opt 3.2.0 takes no division that is rounded to nearest.
    """
    column = tl.arange(0, BLOCK)
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(number, tl.int64)
        # As integers, the bits of sizes rise with the sizes, and those of NaN lie above them all.
        largest = tl.zeros([BLOCK], tl.int32)
        for start in range(0, width, BLOCK):
            at = start + column
            value = tl.load(x + row * x_row + at, mask=at < width, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        sizes = tl.math.div_rn(largest.to(tl.float32, bitcast=True), 127.0)
        scale = tl.max(sizes.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0).to(tl.float32, bitcast=True)
        tl.store(scales + row, scale)
        # Of a scale of 0 there are only values so small that they round to 0 as they are.
        divisor = tl.where(scale == 0.0, 1.0, scale)
        for start in range(0, width, BLOCK):
            at = start + column
            value = tl.load(x + row * x_row + at, mask=at < width, other=0.0).to(tl.float32)
            code = encode_integer(tl.math.div_rn(value, divisor), 127).to(tl.int8)
            tl.store(codes + row * width + at, code, mask=at < width)
