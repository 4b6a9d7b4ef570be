"""Round-to-nearest packers of ggml's block formats: f32 [blocks, block_k] -> u8 [blocks, block_bytes].

Simpler than llama.cpp's, which search for the scale of least error; these guarantee that every weight comes back
within half a step, of uneven steps half of the one that it lies in. A sub-block's scale is rounded upwards in units of
the block's scale for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket.quantization.grouped import IQ4
from opsocket.quantization.rounding import divide, f16_at_least

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def _as_bytes(values: Array) -> Bytes:
    """f16 [blocks] -> u8 [blocks, 2]."""
    return np.ascontiguousarray(values)[:, None].view(np.uint8)


def _signed_step(blocks: Float32, middle: int) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Least step of codes -middle..middle-1 over the last axis, and where their scale is negative: where the weight of
    largest magnitude is positive, which gets -middle."""
    above, below = np.maximum(blocks.max(axis=-1), 0), np.maximum(-blocks.min(axis=-1), 0)
    step = np.maximum(np.maximum(above, below) / middle, np.minimum(above, below) / (middle - 1))
    return step, above > below


def _signed_codes(blocks: Float32, middle: int) -> tuple[npt.NDArray[np.float16], Bytes]:
    step, is_negative = _signed_step(blocks, middle)
    scale = f16_at_least(step)
    scale = np.where(is_negative, -scale, scale)
    codes = np.rint(divide(blocks, scale[:, None])) + middle
    return scale, codes.clip(0, 2 * middle - 1).astype(np.uint8)


def _nibbles(codes: Bytes) -> Bytes:
    """u8 [..., 2 * W] -> u8 [..., W]: the first half in the low nibbles, the second in the high."""
    low, high = np.split(codes & np.uint8(15), 2, axis=-1)
    packed: Bytes = low | high << np.uint8(4)
    return packed


def _bit_pairs(codes: Bytes) -> Bytes:
    """u8 [..., 4 * W] -> u8 [..., W]: each quarter in its pair of bits, the first in the lowest."""
    first, second, third, fourth = np.split(codes & np.uint8(3), 4, axis=-1)
    packed: Bytes = first | second << np.uint8(2) | third << np.uint8(4) | fourth << np.uint8(6)
    return packed


def _bit_planes(bits: Bytes) -> Bytes:
    """u8 [blocks, 256] of 0 and 1 -> u8 [blocks, 32]: each eighth in its bit, the first in the lowest."""
    return np.packbits(bits.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)


def _q4_0(blocks: Float32) -> Bytes:
    scale, codes = _signed_codes(blocks, 8)
    return np.concatenate((_as_bytes(scale), _nibbles(codes)), axis=1)


def _q5_0(blocks: Float32) -> Bytes:
    scale, codes = _signed_codes(blocks, 16)
    fifth = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")
    return np.concatenate((_as_bytes(scale), fifth, _nibbles(codes)), axis=1)


def _above_minimum(blocks: Float32, levels: int) -> tuple[Bytes, Bytes, Bytes]:
    """Scale and minimum, the lowest weight or 0, as bytes; codes 0..levels."""
    minimum = -f16_at_least(-np.minimum(blocks.min(axis=1), 0))
    shifted = blocks - minimum[:, None].astype(np.float32)
    scale = f16_at_least(shifted.max(axis=1) / levels)
    codes = np.rint(divide(shifted, scale[:, None])).clip(0, levels).astype(np.uint8)
    return _as_bytes(scale), _as_bytes(minimum), codes


def _q4_1(blocks: Float32) -> Bytes:
    scale, minimum, codes = _above_minimum(blocks, 15)
    return np.concatenate((scale, minimum, _nibbles(codes)), axis=1)


def _q5_1(blocks: Float32) -> Bytes:
    scale, minimum, codes = _above_minimum(blocks, 31)
    fifth = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")
    return np.concatenate((scale, minimum, fifth, _nibbles(codes)), axis=1)


def _q8_0(blocks: Float32) -> Bytes:
    scale = f16_at_least(np.abs(blocks).max(axis=1) / 127)
    codes = np.rint(divide(blocks, scale[:, None])).clip(-127, 127).astype(np.int8)
    return np.concatenate((_as_bytes(scale), codes.view(np.uint8)), axis=1)


def _units(values: Float32, levels: int) -> tuple[npt.NDArray[np.float16], Bytes, Float32]:
    """Non-negative [blocks, sub-blocks] in units of one f16 per block, rounded up: unit, multiples, their products."""
    unit = f16_at_least(values.max(axis=1) / levels)
    multiples = np.ceil(divide(values, unit[:, None])).clip(0, levels)
    return unit, multiples.astype(np.uint8), multiples * unit[:, None].astype(np.float32)


def _with_minimum(
    blocks: Float32, sub_block: int, code_levels: int, unit_levels: int
) -> tuple[Bytes, Bytes, Bytes, Bytes, Bytes]:
    """d, dmin as bytes; scales, minimums u8 [blocks, sub-blocks]; codes u8 [blocks, 256]."""
    subs = blocks.reshape(len(blocks), -1, sub_block)
    dmin, minimums, minimum = _units(-np.minimum(subs.min(axis=2), 0), unit_levels)
    shifted = subs + minimum[:, :, None]
    d, scales, scale = _units(shifted.max(axis=2) / code_levels, unit_levels)
    codes = np.rint(divide(shifted, scale[:, :, None])).clip(0, code_levels).astype(np.uint8)
    return _as_bytes(d), _as_bytes(dmin), scales, minimums, codes.reshape(blocks.shape)


def _q2_K(blocks: Float32) -> Bytes:  # noqa: N802
    d, dmin, scales, minimums, codes = _with_minimum(blocks, 16, 3, 15)
    pairs = _bit_pairs(codes.reshape(-1, 2, 128)).reshape(-1, 64)
    return np.concatenate((scales | minimums << np.uint8(4), pairs, d, dmin), axis=1)


def _q3_K(blocks: Float32) -> Bytes:  # noqa: N802
    subs = blocks.reshape(len(blocks), 16, 16)
    step, is_negative = _signed_step(subs, 4)
    d, scales, scale = _units(step, 31)
    # The larger side of zero has four codes and the other three, whichever it is: the step may be three quarters.
    scale = np.where(is_negative, -scale, scale)
    codes = (np.rint(divide(subs, scale[:, :, None])) + 4).clip(0, 7).astype(np.uint8).reshape(blocks.shape)
    offset = np.uint8(32)
    scales = np.where(is_negative, offset - scales, offset + scales)
    low, third = _bit_pairs(codes.reshape(-1, 2, 128)).reshape(-1, 64), _bit_planes(codes >> np.uint8(2))
    return np.concatenate((third, low, _nibbles(scales), _bit_pairs(scales >> np.uint8(4)), _as_bytes(d)), axis=1)


def _six_bit_pairs(scales: Bytes, minimums: Bytes) -> Bytes:
    """u8 [blocks, 8] each -> u8 [blocks, 12]: the first four of both, on top of these the upper bits of the last four,
    whose low nibbles follow."""
    top_bits = np.uint8(0x30)
    packed = (
        scales[:, :4] | (scales[:, 4:] & top_bits) << np.uint8(2),
        minimums[:, :4] | (minimums[:, 4:] & top_bits) << np.uint8(2),
        scales[:, 4:] & np.uint8(15) | minimums[:, 4:] << np.uint8(4),
    )
    return np.concatenate(packed, axis=1)


def _q4_K(blocks: Float32) -> Bytes:  # noqa: N802
    d, dmin, scales, minimums, codes = _with_minimum(blocks, 32, 15, 63)
    low = _nibbles(codes.reshape(-1, 4, 64)).reshape(-1, 128)
    return np.concatenate((d, dmin, _six_bit_pairs(scales, minimums), low), axis=1)


def _q5_K(blocks: Float32) -> Bytes:  # noqa: N802
    d, dmin, scales, minimums, codes = _with_minimum(blocks, 32, 31, 63)
    fifth, low = _bit_planes(codes >> np.uint8(4)), _nibbles(codes.reshape(-1, 4, 64)).reshape(-1, 128)
    return np.concatenate((d, dmin, _six_bit_pairs(scales, minimums), fifth, low), axis=1)


def _q6_K(blocks: Float32) -> Bytes:  # noqa: N802
    subs = blocks.reshape(len(blocks), 16, 16)
    step = np.maximum(np.maximum(subs.max(axis=2) / 31, -subs.min(axis=2) / 32), 0)
    d, scales, scale = _units(step, 127)
    codes = (np.rint(divide(subs, scale[:, :, None])) + 32).clip(0, 63).astype(np.uint8).reshape(blocks.shape)
    halves = codes.reshape(-1, 2, 128)
    low, high = _nibbles(halves).reshape(-1, 128), _bit_pairs(halves >> np.uint8(4)).reshape(-1, 64)
    return np.concatenate((low, high, scales, _as_bytes(d)), axis=1)


_BETWEEN_IQ4 = (IQ4[1:].astype(np.float32) + IQ4[:-1].astype(np.float32)) / 2


def _iq4_step(blocks: Float32) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Least scale under which the last axis fits, and where it is negative: the larger side of zero gets the -127."""
    above, below = np.maximum(blocks.max(axis=-1), 0), np.maximum(-blocks.min(axis=-1), 0)
    last = np.float32(IQ4[-1])
    step = np.maximum(np.maximum(above, below) / -np.float32(IQ4[0]), np.minimum(above, below) / last)
    return step, above > below


def _iq4_codes(blocks: Float32, scale: Array) -> Bytes:
    return np.searchsorted(_BETWEEN_IQ4, divide(blocks, scale[..., None])).astype(np.uint8)


def _iq4_nl(blocks: Float32) -> Bytes:
    step, is_negative = _iq4_step(blocks)
    scale = f16_at_least(step)
    scale = np.where(is_negative, -scale, scale)
    return np.concatenate((_as_bytes(scale), _nibbles(_iq4_codes(blocks, scale))), axis=1)


def _iq4_xs(blocks: Float32) -> Bytes:
    subs = blocks.reshape(len(blocks), 8, 32)
    step, is_negative = _iq4_step(subs)
    d, scales, scale = _units(step, 31)
    codes = _iq4_codes(subs, np.where(is_negative, -scale, scale))
    offset = np.uint8(32)
    scales = np.where(is_negative, offset - scales, offset + scales)
    low, top = scales & np.uint8(15), (scales >> np.uint8(4)).reshape(-1, 2, 4)
    packed = _bit_pairs(top).reshape(-1, 2), low[:, 0::2] | low[:, 1::2] << np.uint8(4)
    return np.concatenate((_as_bytes(d), *packed, _nibbles(codes).reshape(-1, 128)), axis=1)


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_BETWEEN = (_E2M1[1:] + _E2M1[:-1]) / 2


def _mxfp4(blocks: Float32) -> Bytes:
    """The least power of two under which the largest weight is within a half step of 6, where the codes end: at most 7.

    The Microscaling specification takes the power of two below a quarter of it, which cuts 7 to 8 down to 6.
    """
    largest = np.abs(blocks).max(axis=1)
    _, exponent = np.frexp(largest / 7)  # largest <= 7 * 2^exponent, and by the next lower only where it is equal
    exponent = np.where(np.ldexp(np.float32(7), exponent - 1) >= largest, exponent - 1, exponent).clip(-127, 127)
    size = np.abs(np.ldexp(blocks, -exponent[:, None]))
    # Ties to the even code: those below a middle, and the middle itself where the code above it is odd.
    codes = np.searchsorted(_BETWEEN, size, side="right").astype(np.uint8)
    at_middle = (codes > 0) & (size == _BETWEEN[np.maximum(codes, 1) - 1])
    codes -= (at_middle & (codes & 1 == 1)).astype(np.uint8)
    codes |= np.signbit(blocks).astype(np.uint8) << np.uint8(3)
    return np.concatenate(((exponent + 127).astype(np.uint8)[:, None], _nibbles(codes)), axis=1)


PACKERS: Mapping[str, Callable[[Float32], Bytes]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q2_K": _q2_K,
    "q3_K": _q3_K,
    "q4_K": _q4_K,
    "q5_K": _q5_K,
    "q6_K": _q6_K,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
}
"""Packer of every ggml format, by format id."""
