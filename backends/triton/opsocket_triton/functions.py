"""Device functions that several kernels share: f32 functions closer than a chip's own, and codes as floats.

The former are only additions, products and integer arithmetic, so that they are the same on every architecture. A
compiler may fuse a product with a sum, which makes none of them less exact. Polynomials: least maximum of the relative
error.
"""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.cache.codes import decode


@triton.jit
def exp_exact(x):
    """e^x of f32 within 2 units in the last place, subnormal results too; NaN stays NaN.

    x = n ln 2 + r with |r| <= ln(2) / 2, e^r by a polynomial, and 2^n as two factors, since one alone may not be
    representable where the result is.
    """
    low = tl.where(x < -104.0, -104.0, x)
    bounded = tl.where(low > 89.0, 89.0, low)
    # Added to a number below 2^22, 1.5 * 2^23 leaves no bit for its fraction: it is rounded to an integer.
    rounder = 12582912.0
    shifted = bounded * 1.4426950408889634 + rounder
    n = shifted - rounder
    # The first part of ln 2 has few enough bits for its product with n to be exact.
    r = (bounded - n * 0.693359375) + n * 2.1219444005469057e-4
    p = 0.0013950599823147058
    p = p * r + 0.008368954062461853
    p = p * r + 0.04166620597243309
    p = p * r + 0.166665181517601
    p = p * r + 0.5
    y = (p * r * r + r) + 1.0
    count = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    half = count >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((count - half + 127) << 23).to(tl.float32, bitcast=True)
    return y * first * second


@triton.jit
def tanh_exact(x):
    """tanh x of f32 within 2 units in the last place; NaN stays NaN."""
    size = tl.abs(x)
    z = x * x
    p = -0.005717036779969931
    p = p * z + 0.020650578662753105
    p = p * z - 0.05374349653720856
    p = p * z + 0.13331490755081177
    p = p * z - 0.3333328366279602
    near = x + x * (z * p)
    far = 1.0 - tl.math.div_rn(2.0, exp_exact(2.0 * size) + 1.0)
    return tl.where(size < 0.625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def log_exact(x):
    """ln x within 2 units in the last place of the largest of it and 0.5, for x a positive normal f32."""
    bits = x.to(tl.int32, bitcast=True)
    # The exponent of x over the root of 1/2, so that what remains is in [sqrt(1/2), sqrt(2)).
    k = (bits - 0x3F3504F3) >> 23
    f = (bits - (k << 23)).to(tl.float32, bitcast=True) - 1.0
    p = 0.06915368139743805
    p = p * f - 0.11789807677268982
    p = p * f + 0.11872976273298264
    p = p * f - 0.1238434836268425
    p = p * f + 0.14218658208847046
    p = p * f - 0.16669251024723053
    p = p * f + 0.20002226531505585
    p = p * f - 0.24999986588954926
    p = p * f + 0.3333331048488617
    z = f * f
    n = k.to(tl.float32)
    return n * 0.693359375 + (f + ((z * f * p - 0.5 * z) - n * 2.1219444005469057e-4))


@triton.jit
def tanh_approx(x):
    """tanh x of f32 within 2^-12 of it, by the chip's own exponential; NaN stays NaN."""
    size = tl.abs(x)
    z = x * x
    near = x + x * (z * (z * 0.13331490755081177 - 0.3333328366279602))
    far = 1.0 - 2.0 / (tl.exp2(size * 2.8853900817779268) + 1.0)
    return tl.where(size < 0.25, near, tl.where(x < 0.0, -far, far))


@triton.jit
def float_of_byte(field, OFFSET: tl.constexpr):
    """f32 of unsigned fields below 256, less OFFSET; exact.

    The field becomes the last bits of 2^23: NVIDIA's units convert integers at an eighth of the rate at which they
    subtract, which would limit a product over 4-bit codes below the rate of its memory.
    """
    return (field.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)


@triton.jit
def field_of(stored, field, BITS: tl.constexpr):
    """Field number `field` of bytes u8, as u8; of BITS 8 the bytes i8 as they are."""
    if BITS == 8:
        return stored
    else:
        return (stored >> tl.full((1,), field * BITS, tl.uint8)) & ((1 << BITS) - 1)


@triton.jit
def float_of_field(stored, field, BITS: tl.constexpr, OFFSET: tl.constexpr):
    """f32 codes of a field of bytes, less OFFSET; or the small floats that OFFSET names, of e2m1 twice each."""
    if OFFSET == "f8e4m3fn":
        return decode(stored, OFFSET, tl.float32)
    elif OFFSET == "e2m1":
        # Laid into an f16, whose exponent counts from 15 and not from 1: 2^-14 of it, the subnormal number included.
        code = field_of(stored, field, BITS).to(tl.uint16)
        small = ((code & 8) << 12) | ((code & 7) << 9)
        return small.to(tl.float16, bitcast=True).to(tl.float32) * 32768.0
    elif BITS == 8:
        return float_of_byte(stored.to(tl.uint8, bitcast=True) ^ 0x80, 128)
    else:
        return float_of_byte(field_of(stored, field, BITS), OFFSET)


@triton.jit
def float_of_sum(total):
    """f32 of i32 sums below 2^22 in magnitude; exact, as `float_of_byte`."""
    return (total + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def signed_field(stored, field, BITS: tl.constexpr, OFFSET: tl.constexpr):
    """i8 codes of a field of bytes, less OFFSET; of OFFSET e2m1 twice the numbers that they stand for."""
    if BITS == 8:
        return stored
    elif OFFSET == "e2m1":
        # 0, 1, 2, 3, 4, 6, 8, 12: the nibbles of one number.
        code = field_of(stored, field, BITS).to(tl.int32)
        size = (tl.full((1,), -0x379BCDF0, tl.int32) >> ((code & 7) * 4)) & 15
        return tl.where(code > 7, -size, size).to(tl.int8)
    elif OFFSET == 0:
        return field_of(stored, field, BITS).to(tl.int8, bitcast=True)
    else:
        return field_of(stored, field, BITS).to(tl.int8, bitcast=True) - OFFSET
