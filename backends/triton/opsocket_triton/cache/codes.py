"""Codes of a KV cache, in registers: what they stand for, and which code stands for a number.

By integer arithmetic and exact steps in f32, so that one kernel is right on every architecture, whichever 8-bit floats
it has of its own. CODE is `KVFormat.code`. What a kernel loads: f32, f16 and bf16 as they are; i8 as int8; f8 as uint8
(a view of its plane); i4 and i2 as uint8, packed along dim, lowest bits first, each field code + 2^(bits - 1).

    raw = tl.load(plane + ...)                            # bytes, [..., W]
    values = decode(unpack(raw, CODE), CODE, tl.float32)  # [..., D], the codes without their scales

Scales are multiplied in f32, once, as the quantizer pins it.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS_PER_BYTE = {"i4": 2, "i2": 4}
"""Codes that lie in one byte of their plane; 1 for all others."""


@triton.constexpr_function
def fields_per_byte(code):
    """The same, for kernels: the compiler takes no dict."""
    if code == "i4":
        return 2
    return 4 if code == "i2" else 1


@triton.jit
def unpack(raw, CODE: tl.constexpr):
    """Fields uint8[..., W * FIELDS_PER_BYTE] of packed bytes uint8[..., W], in their order; other codes as they are."""
    if CODE == "i4":
        return tl.interleave(raw & 15, raw >> 4)
    elif CODE == "i2":
        even = tl.interleave(raw & 3, (raw >> 4) & 3)
        odd = tl.interleave((raw >> 2) & 3, raw >> 6)
        return tl.interleave(even, odd)
    else:
        return raw


@triton.jit
def unpack_at(raw, column, CODE: tl.constexpr):
    """Fields of bytes that were loaded once for every column, each from byte column // FIELDS_PER_BYTE."""
    if CODE == "i4":
        return (raw >> ((column % 2) * 4).to(tl.uint8)) & 15
    elif CODE == "i2":
        return (raw >> ((column % 4) * 2).to(tl.uint8)) & 3
    else:
        return raw


@triton.jit
def decode(raw, CODE: tl.constexpr, OUT: tl.constexpr):
    """What unpacked codes stand for, exactly, before any scale. OUT: tl.float32, tl.float16 or tl.bfloat16; each of the
    three holds every f8, i8, i4 and i2 code (a cache of floats is rounded to it)."""
    if CODE == "i8" or CODE == "i4" or CODE == "i2":
        # 2^23 + n as f32 has the bits of 2^23 with those of n below: an "or" and a difference in place of a conversion,
        # of which most architectures do a quarter as many.
        if CODE == "i8":
            field = raw.to(tl.uint8, bitcast=True) ^ 128
            shift: tl.constexpr = 8388608.0 + 128.0
        elif CODE == "i4":
            field = raw
            shift: tl.constexpr = 8388608.0 + 8.0
        else:
            field = raw
            shift: tl.constexpr = 8388608.0 + 2.0
        bits = field.to(tl.uint32) | 0x4B000000
        return (bits.to(tl.float32, bitcast=True) - shift).to(OUT)
    elif CODE == "f8e5m2":
        # The upper byte of an f16.
        return (raw.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(OUT)
    elif CODE == "f8e4m3fn":
        # Laid into an f16, whose exponent counts from 15 and not from 7: 2^-8 of it, subnormals included.
        bits = raw.to(tl.uint16)
        small = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        small = tl.where((bits & 0x7F) == 0x7F, 0x7E00, small).to(tl.uint16)
        return (small.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(OUT)
    elif CODE == "f8e4m3fnuz":
        bits = raw.to(tl.uint16)
        small = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        small = tl.where(bits == 0x80, 0x7E00, small).to(tl.uint16)
        return (small.to(tl.float16, bitcast=True).to(tl.float32) * 128.0).to(OUT)
    else:
        return raw.to(OUT)


@triton.jit
def encode_integer(x, MAX: tl.constexpr):
    """round_half_even(x) as int32 in [-MAX, MAX] of f32 x, a number over its scale; NaN gives 0."""
    x = tl.where(x == x, x, 0.0)
    x = tl.minimum(tl.maximum(x, -MAX * 1.0), MAX * 1.0)
    # 1.5 * 2^23 leaves no bit for a fraction: the sum is rounded, ties to even, and its low bits are the integer.
    return (x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def encode_f8(x, CODE: tl.constexpr):
    """The 8-bit float nearest to f32 x as uint8, ties to even, saturated at the largest finite one; NaN stays NaN."""
    if CODE == "f8e4m3fn":
        fraction: tl.constexpr = 3
        bias: tl.constexpr = 7
        largest: tl.constexpr = 448.0
        nan: tl.constexpr = 0x7F
        least: tl.constexpr = 0.015625  # 2^-6: the smallest normal number
        step: tl.constexpr = 16384.0  # 2^14, where f32 counts in steps of 2^-9, as subnormals do
    elif CODE == "f8e4m3fnuz":
        fraction: tl.constexpr = 3
        bias: tl.constexpr = 8
        largest: tl.constexpr = 240.0
        nan: tl.constexpr = 0x80
        least: tl.constexpr = 0.0078125  # 2^-7
        step: tl.constexpr = 8192.0  # 2^13, steps of 2^-10
    else:
        fraction: tl.constexpr = 2
        bias: tl.constexpr = 15
        largest: tl.constexpr = 57344.0
        nan: tl.constexpr = 0x7F
        least: tl.constexpr = 0.00006103515625  # 2^-14
        step: tl.constexpr = 128.0  # 2^7, steps of 2^-16
    cut: tl.constexpr = 23 - fraction
    is_nan = x != x
    negative = x.to(tl.uint32, bitcast=True) >> 31
    size = tl.minimum(tl.abs(tl.where(is_nan, 0.0, x)), largest)
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + ((1 << (cut - 1)) - 1) + ((bits >> cut) & 1)) >> cut) - ((127 - bias) << fraction)
    subnormal = (size + step).to(tl.uint32, bitcast=True) - ((127 + 23 - bias - fraction + 1) << 23)
    code = tl.where(size < least, subnormal, normal)
    if CODE == "f8e4m3fnuz":
        negative = tl.where(code == 0, 0, negative)  # -0 would read as NaN
    return tl.where(is_nan, nan, code | (negative << 7)).to(tl.uint8)
