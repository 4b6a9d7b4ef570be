"""Angles as exact fractions of a turn, and their cosines and sines.

A frequency is held as 2^64 times the turns that it makes per position, rounded to an integer. Times a position, modulo
2^64, that is the angle with its whole turns taken away, in one integer product: no f64, no long reduction, and off by
position * 2^-65 turns at most.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import triton
import triton.language as tl

# 1 / (2 pi), beyond the precision of f64: its hexadecimal digits to 2^-128.
_TURNS_PER_RADIAN = Fraction(0x28BE60DB9391054A7F09D5F47D4D3770, 2**128)


def steps_per_position(radians: np.ndarray) -> np.ndarray:
    """2^64 times the turns of frequencies f64 in radians, modulo 2^64, as i64."""
    steps = [round(Fraction(float(value)) * _TURNS_PER_RADIAN * 2**64) % 2**64 for value in radians]
    return np.array(steps, np.uint64).view(np.int64)


def turns_per_position(radians: np.ndarray) -> np.ndarray:
    """Turns f64 of frequencies f64 in radians, rounded once."""
    return np.array([float(Fraction(float(value)) * _TURNS_PER_RADIAN) for value in radians])


@triton.jit
def steps_of(turns):
    """2^64 times the fraction of f64 turns, as i64, exact but for what lies below 2^-63."""
    fraction = turns - tl.floor(turns)
    return (fraction * 9223372036854775808.0).to(tl.int64) << 1


@triton.jit
def cos_sin(angle):
    """f32 cosine and sine of i64 angles, 2^64 to the turn, within 2 units in the last place of 1.

    The nearest quarter of a turn is taken away, and polynomials of least maximum error do the rest, |x| <= pi / 4
    (Cephes, sinf and cosf).
    """
    quarter = (angle + 0x2000000000000000) >> 62
    rest = ((angle - (quarter << 62)) >> 30).to(tl.int32)
    x = rest.to(tl.float32) * 3.657295198e-10  # 2 pi / 2^34
    z = x * x
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * x + x
    cosine = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    turned = (quarter & 1) == 1
    half = (quarter & 2) == 2
    first = tl.where(turned, -sine, cosine)
    second = tl.where(turned, cosine, sine)
    return tl.where(half, -first, first), tl.where(half, -second, second)
