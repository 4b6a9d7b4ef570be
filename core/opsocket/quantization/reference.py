"""What a quantized weight means: float64 dequantization straight from each format's definition.

Written to be checked by eye against the format's description, one weight position at a time over all rows at once;
shares no code with `grouped`. Everything here is exact in float64: a 16-bit float times small integers.

Sources of the layouts: ``ggml-quants.c`` (ggml formats), AutoGPTQ's and GPTQModel's ``pack`` (GPTQ v1 and v2),
AutoAWQ's ``WQLinear_GEMM.from_linear`` (AWQ), the OCP's 8-bit Floating Point Specification (e4m3) and Microscaling
Formats Specification (e2m1, e8m0), DeepSeek-V3's ``weight_dequant`` (128 by 128). The others are defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError

if TYPE_CHECKING:
    from opsocket.quantization.formats import QuantFormat

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

_AWQ_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


def dequantize(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Float64:
    """float64 [n, k] of validated tensors. Called through `QuantFormat.reference`."""
    match format.packing:
        case "dense" if format.id == "bf16":
            return _bfloat16(tensors["weight"])
        case "dense" if format.is_float:
            return tensors["weight"].astype(np.float64)
        case "dense" if format.code == "f8e4m3fn":
            return _f8e4m3fn(tensors["weight"]) * _of_blocks(format, tensors["scale"], n, k)
        case "dense":
            return tensors["weight"].astype(np.float64) * tensors["scale"].astype(np.float64)[:, None]
        case "nibble_lo":
            return _lowest_bits_first(format, tensors, n, k)
        case "gptq_v1":
            return _gptq(format, tensors, n, k, stored_zero_is_less_by=1)
        case "gptq_v2":
            return _gptq(format, tensors, n, k, stored_zero_is_less_by=0)
        case "awq":
            return _awq(format, tensors, n, k)
        case "ggml" if format.base.id in _GGML_BLOCKS:
            return _ggml(format, tensors["blocks"], n, k)
    raise ContractError("format.packing", "a packing that opsocket knows, or a subclass's own reference", format)


def _bfloat16(bits: Array) -> Float64:
    """Sign, eight exponent bits (bias 127), seven fraction bits."""
    sign = np.where(bits >> 15, -1.0, 1.0)
    exponent = (bits >> 7 & 0xFF).astype(np.int64)
    fraction = (bits & 0x7F) / 128.0
    normal = np.ldexp(1.0 + fraction, exponent - 127)
    subnormal = np.ldexp(fraction, -126)
    special = np.where(fraction == 0, np.inf, np.nan)
    return sign * np.where(exponent == 0xFF, special, np.where(exponent == 0, subnormal, normal))


def _f8e4m3fn(bits: Array) -> Float64:
    """Sign, four exponent bits (bias 7), three fraction bits; no infinities, and all ones of the seven is NaN."""
    sign = np.where(bits >> 7, -1.0, 1.0)
    exponent = (bits >> 3 & 0xF).astype(np.int64)
    fraction = (bits & 0x7) / 8.0
    value = np.where(exponent == 0, np.ldexp(fraction, -6), np.ldexp(1.0 + fraction, exponent - 7))
    return sign * np.where(bits & 0x7F == 0x7F, np.nan, value)


def _of_blocks(format: QuantFormat, scale: Array, n: int, k: int) -> Float64:
    """Of weight [i, j] the scale of block i // block_n, j // block_k; the last blocks may be parts of one."""
    down, across = np.arange(n) // (format.block_n or n), np.arange(k) // (format.block_k or k)
    return scale.astype(np.float64).reshape(down[-1] + 1, across[-1] + 1)[down[:, None], across]


def _lowest_bits_first(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Float64:
    """Column k: bits [k * bits, (k + 1) * bits) of the row. w = s * (q - 2^(bits-1)), or s * (q - z)."""
    out = np.empty((n, k))
    for column in range(k):
        byte, bit = divmod(column * format.bits, 8)
        group = column // format.block_k
        code = (tensors["codes"][:, byte] >> bit) % (1 << format.bits)
        zero = tensors["zero"][:, group].astype(np.float64) if format.zero == "int" else 2.0 ** (format.bits - 1)
        out[:, column] = tensors["scale"][:, group].astype(np.float64) * (code - zero)
    return out


def _gptq(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int, *, stored_zero_is_less_by: int) -> Float64:
    """Input k of output n: nibble k % 8 of qweight[k // 8, n]; its group's zero: nibble n % 8 of qzeros[g, n // 8].

    v1 stores the zero point less one. Like the exllama kernels, and unlike AutoGPTQ's torch path, a stored 15 means
    16 and does not wrap to 0.
    """
    out = np.empty((n, k))
    outputs = np.arange(n)
    for column in range(k):
        group = int(tensors["g_idx"][column]) if format.g_idx else column // format.block_k
        code = tensors["qweight"][column // 8].astype(np.int64) >> (4 * (column % 8)) & 15
        zero = tensors["qzeros"][group, outputs // 8].astype(np.int64) >> (4 * (outputs % 8)) & 15
        zero += stored_zero_is_less_by
        out[:, column] = tensors["scales"][group].astype(np.float64) * (code - zero)
    return out


def _awq(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Float64:
    """Nibble i of word c, of qweight and of qzeros alike, belongs to output 8 * c + (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    out = np.empty((n, k))
    for nibble, column in enumerate(_AWQ_COLUMN_OF_NIBBLE):
        code = tensors["qweight"].astype(np.int64) >> (4 * nibble) & 15
        zero = tensors["qzeros"].astype(np.int64) >> (4 * nibble) & 15
        scale = tensors["scales"][:, column::8].astype(np.float64)
        for group in range(k // format.block_k):
            inputs = slice(group * format.block_k, (group + 1) * format.block_k)
            out[column::8, inputs] = (scale[group] * (code[inputs] - zero[group])).T
    return out


def _ggml(format: QuantFormat, rows: Array, n: int, k: int) -> Float64:
    weight_of = _GGML_BLOCKS[format.base.id]
    block_k = format.super_block or format.block_k
    block = rows.reshape(n, k // block_k, format.block_bytes)
    return np.stack([weight_of(block, j) for j in range(block_k)], axis=-1).reshape(n, k)


# Each function below gives weight j of a block: u8 [..., block_bytes] -> float64 [...].


def _half(block: Array, byte: int) -> Float64:
    """The little-endian IEEE half at a byte offset."""
    bits = block[..., byte].astype(np.uint16) + 256 * block[..., byte + 1].astype(np.uint16)
    return bits.view(np.float16).astype(np.float64)


def _bits(block: Array, byte: int, first: int, width: int) -> Float64:
    """Bits [first, first + width) of one byte, as an unsigned number."""
    return (block[..., byte] >> first & ((1 << width) - 1)).astype(np.float64)


def _signed(block: Array, byte: int) -> Float64:
    """One byte in two's complement."""
    value = _bits(block, byte, 0, 8)
    return np.where(value < 128, value, value - 256)


def _q4_0(block: Array, j: int) -> Float64:
    """d: half @0. Code: 16 bytes @2, first half of the block in the low nibbles, second in the high. d * (q - 8)."""
    code = _bits(block, 2 + j % 16, 4 * (j // 16), 4)
    return _half(block, 0) * (code - 8)


def _q4_1(block: Array, j: int) -> Float64:
    """d: half @0. m: half @2. Nibbles as q4_0 @4. d * q + m."""
    code = _bits(block, 4 + j % 16, 4 * (j // 16), 4)
    return _half(block, 0) * code + _half(block, 2)


def _q5_0(block: Array, j: int) -> Float64:
    """d: half @0. Fifth bits: little-endian u32 @2, bit j. Nibbles as q4_0 @6. d * (q - 16)."""
    code = _bits(block, 6 + j % 16, 4 * (j // 16), 4) + 16 * _bits(block, 2 + j // 8, j % 8, 1)
    return _half(block, 0) * (code - 16)


def _q5_1(block: Array, j: int) -> Float64:
    """d: half @0. m: half @2. Fifth bits: little-endian u32 @4, bit j. Nibbles as q4_0 @8. d * q + m."""
    code = _bits(block, 8 + j % 16, 4 * (j // 16), 4) + 16 * _bits(block, 4 + j // 8, j % 8, 1)
    return _half(block, 0) * code + _half(block, 2)


def _q8_0(block: Array, j: int) -> Float64:
    """d: half @0. Code: signed byte @2. d * q."""
    return _half(block, 0) * _signed(block, 2 + j)


def _q2_K(block: Array, j: int) -> Float64:  # noqa: N802
    """Sub-blocks of 16: byte @0, scale in the low nibble, minimum in the high. Codes @16. d: half @80. dmin: half @82.

    Each half of the block (128) has 32 code bytes, whose four bit pairs hold its four quarters.
    """
    half, within = divmod(j, 128)
    quarter, byte = divmod(within, 32)
    code = _bits(block, 16 + 32 * half + byte, 2 * quarter, 2)
    scale = _half(block, 80) * _bits(block, j // 16, 0, 4)
    minimum = _half(block, 82) * _bits(block, j // 16, 4, 4)
    return scale * code - minimum


def _q3_K(block: Array, j: int) -> Float64:  # noqa: N802
    """Third bits: 32 bytes @0. Low bit pairs as q2_K @32. Sixteen six-bit sub-block scales: 12 bytes @96. d: half @108.

    Weight j has its third bit in byte j % 32, and there in bit j // 32. Sub-block s has the low nibble of its scale in
    nibble s // 8 of byte s % 8 of the twelve, and the two bits above in pair s // 4 of byte 8 + s % 4.
    d * (scale - 32) * (q - 4).
    """
    half, within = divmod(j, 128)
    quarter, byte = divmod(within, 32)
    code = _bits(block, 32 + 32 * half + byte, 2 * quarter, 2) + 4 * _bits(block, byte, j // 32, 1)
    sub = j // 16
    scale = _bits(block, 96 + sub % 8, 4 * (sub // 8), 4) + 16 * _bits(block, 104 + sub % 4, 2 * (sub // 4), 2)
    return _half(block, 108) * (scale - 32) * (code - 4)


def _q4_K(block: Array, j: int) -> Float64:  # noqa: N802
    """d: half @0. dmin: half @2. Scales and minimums: see `_scale_and_minimum`. Codes @16.

    Each quarter of the block (64) has 32 code bytes: its first 32 weights in the low nibbles, the rest in the high.
    """
    quarter, within = divmod(j, 64)
    high, byte = divmod(within, 32)
    code = _bits(block, 16 + 32 * quarter + byte, 4 * high, 4)
    scale, minimum = _scale_and_minimum(block, j // 32)
    return scale * code - minimum


def _scale_and_minimum(block: Array, sub: int) -> tuple[Float64, Float64]:
    """d * scale and dmin * minimum of sub-block `sub` of eight of 32: d: half @0, dmin: half @2, six bits each in 12
    bytes @4.

    Sub-blocks 0-3 have their scale in byte 4 + s and their minimum in byte 8 + s. Sub-blocks 4-7 have the low nibbles
    of both in byte 8 + s, and the two bits above on top of those earlier bytes.
    """
    if sub < 4:
        scale, minimum = _bits(block, 4 + sub, 0, 6), _bits(block, 8 + sub, 0, 6)
    else:
        scale = _bits(block, 8 + sub, 0, 4) + 16 * _bits(block, sub, 6, 2)
        minimum = _bits(block, 8 + sub, 4, 4) + 16 * _bits(block, 4 + sub, 6, 2)
    return _half(block, 0) * scale, _half(block, 2) * minimum


def _q5_K(block: Array, j: int) -> Float64:  # noqa: N802
    """d, dmin, scales and minimums as q4_K. Fifth bits: 32 bytes @16. Low nibbles as q4_K @48.

    Weight j has its fifth bit in byte j % 32, and there in the bit of its sub-block.
    """
    quarter, within = divmod(j, 64)
    high, byte = divmod(within, 32)
    code = _bits(block, 48 + 32 * quarter + byte, 4 * high, 4) + 16 * _bits(block, 16 + byte, j // 32, 1)
    scale, minimum = _scale_and_minimum(block, j // 32)
    return scale * code - minimum


def _q6_K(block: Array, j: int) -> Float64:  # noqa: N802
    """Low nibbles: 128 bytes @0. High bit pairs: 64 bytes @128. Sixteen signed sub-block scales @192. d: half @208.

    Each half of the block (128) has 64 bytes of low nibbles, low then high, and 32 bytes of high bit pairs, one pair
    for each of its quarters. d * scale * (q - 32).
    """
    half, within = divmod(j, 128)
    high, byte = divmod(within, 64)
    quarter, pair_byte = divmod(within, 32)
    low = _bits(block, 64 * half + byte, 4 * high, 4)
    pair = _bits(block, 128 + 32 * half + pair_byte, 2 * quarter, 2)
    return _half(block, 208) * _signed(block, 192 + j // 16) * (low + 16 * pair - 32)


_IQ4: Float64 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)


def _integer_of_iq4(code: Float64) -> Float64:
    integer: Float64 = _IQ4[code.astype(np.int64)]
    return integer


def _iq4_nl(block: Array, j: int) -> Float64:
    """d: half @0. Code: nibbles as q4_0 @2, which number the sixteen integers. d * integer."""
    code = _bits(block, 2 + j % 16, 4 * (j // 16), 4)
    return _half(block, 0) * _integer_of_iq4(code)


def _iq4_xs(block: Array, j: int) -> Float64:
    """d: half @0. Eight six-bit sub-block scales: the two upper bits in a little-endian u16 @2, the lowest pair first,
    the low nibbles in 4 bytes @4. Each sub-block's 32 codes as iq4_nl's: 16 bytes @8 + 16 * s.
    d * (scale - 32) * integer.
    """
    sub, within = divmod(j, 32)
    code = _bits(block, 8 + 16 * sub + within % 16, 4 * (within // 16), 4)
    scale = _bits(block, 4 + sub // 2, 4 * (sub % 2), 4) + 16 * _bits(block, 2 + sub // 4, 2 * (sub % 4), 2)
    return _half(block, 0) * (scale - 32) * _integer_of_iq4(code)


def _mxfp4(block: Array, j: int) -> Float64:
    """Scale: byte @0, 2^(byte - 127), and 255 is NaN. Code: nibbles as q4_0 @1: sign, two exponent bits (bias 1), one
    fraction bit; no infinities, no NaN."""
    byte, shift = 1 + j % 16, 4 * (j // 16)
    sign, exponent, fraction = (
        _bits(block, byte, shift + 3, 1),
        _bits(block, byte, shift + 1, 2),
        _bits(block, byte, shift, 1),
    )
    size = np.where(exponent == 0, fraction / 2, (1 + fraction / 2) * 2.0 ** (exponent - 1))
    scale = np.where(block[..., 0] == 255, np.nan, 2.0 ** (_bits(block, 0, 0, 8) - 127))
    return scale * np.where(sign == 1, -size, size)


_GGML_BLOCKS: Mapping[str, Callable[[Array, int], Float64]] = {
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
