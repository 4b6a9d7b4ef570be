"""What a stored weight means: dequantizers of the suite's own, one table of bit positions per packing.

Sources of the layouts: ggml's block definitions, AutoGPTQ and GPTQModel (GPTQ v1 and v2), AutoAWQ, DeepSeek-V3's model
code (scales of 128 by 128).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from opsocket.quantization import QuantFormat
from opsocket_conformance.floats import fp8_magnitudes
from opsocket_conformance.guard import judge_only

Array = npt.NDArray[np.generic]
Float64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Weight:
    """value f64[N, K]; magnitude f64[N, K]: the size of the terms that a kernel may sum apart to get it, |w| for a
    float, |scale| (code + zero) for an integer zero point, |scale| code + |minimum| for a stored minimum.

    apart f64[N, K]: the term that it stores for a group and not for a code: scale * zero or minimum, value = scale *
    code - apart; 0 where it stores none. order i64[K]: the columns, group after group. scale f64[N, K]: what codes are
    multiplied by; 1 for a float.
    """

    value: Float64
    magnitude: Float64
    apart: Float64
    order: Int
    scale: Float64


@judge_only
def dequantize(fmt: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Weight:
    """The weight [n, k] of a format's tensors; exact."""
    if fmt.is_float:
        terms = of_floats(_floats(fmt.id, tensors["weight"]))
    else:
        terms = _PACKINGS[fmt.packing](fmt, tensors, n, k)
    if not fmt.g_idx:
        return terms
    return replace(terms, order=np.argsort(tensors["g_idx"], kind="stable").astype(np.int64))


def of_floats(value: Float64) -> Weight:
    """A weight that is stored as floats [N, K]."""
    return Weight(
        value, np.abs(value), np.zeros_like(value), np.arange(value.shape[-1]), np.broadcast_to(1.0, value.shape)
    )


def _floats(dtype: str, weight: Array) -> Float64:
    if dtype != "bf16":
        return weight.astype(np.float64)
    return (weight.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def _affine(scale: Float64, codes: Int, zero: Int) -> Weight:
    """scale * (code - zero), the zero point stored."""
    weight = _signed(scale, codes, zero)
    return replace(weight, apart=np.broadcast_to(scale * zero, weight.value.shape))


def _signed(scale: Float64, codes: Int, offset: Int | int) -> Weight:
    """scale * (code - offset), the offset being what makes the codes signed."""
    value: Float64 = scale * (codes - offset)
    magnitude = np.abs(scale) * (np.abs(codes) + np.abs(offset))
    return replace(of_floats(value), magnitude=magnitude, scale=np.broadcast_to(scale, value.shape))


def _with_minimum(scale: Float64, codes: Int, minimum: Float64) -> Weight:
    value: Float64 = scale * codes - minimum
    magnitude: Float64 = np.abs(scale) * codes.astype(np.float64) + np.abs(minimum)
    return replace(
        of_floats(value),
        magnitude=magnitude,
        apart=np.broadcast_to(minimum, value.shape),
        scale=np.broadcast_to(scale, value.shape),
    )


def _dense(fmt: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Weight:
    scale = tensors["scale"].astype(np.float64)
    if fmt.code == "signed":
        return _signed(scale[:, None], tensors["weight"].astype(np.int64), 0)
    bits = tensors["weight"].astype(np.int64)
    sizes = np.append(fp8_magnitudes(fmt.code), np.nan)
    value = np.where(bits >= 128, -sizes[bits & 127], sizes[bits & 127])
    of_row = scale[np.arange(n) // fmt.block_n] if fmt.block_n else np.broadcast_to(scale, (n,))
    of_weight = of_row[:, np.arange(k) // fmt.block_k] if fmt.block_k else of_row[:, None]
    return replace(of_floats(of_weight * value), scale=np.broadcast_to(of_weight, value.shape))


def _grouped(fmt: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Weight:
    column = np.arange(k)
    bit = column * fmt.bits
    codes = (tensors["codes"].astype(np.int64)[:, bit // 8] >> (bit % 8)) & ((1 << fmt.bits) - 1)
    group = column // fmt.block_k
    scale = tensors["scale"].astype(np.float64)[:, group]
    if fmt.zero == "int":
        return _affine(scale, codes, tensors["zero"].astype(np.int64)[:, group])
    return _signed(scale, codes, 1 << (fmt.bits - 1))


def _gptq(fmt: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Weight:
    column, output = np.arange(k), np.arange(n)
    codes = tensors["qweight"].astype(np.int64)[column // 8].T >> (4 * (column % 8)) & 15
    zeros = tensors["qzeros"].astype(np.int64)[:, output // 8] >> (4 * (output % 8)) & 15
    if fmt.packing == "gptq_v1":
        zeros = zeros + 1
    group = tensors["g_idx"].astype(np.int64) if fmt.g_idx else column // fmt.block_k
    return _affine(tensors["scales"].astype(np.float64)[group].T, codes, zeros[group].T)


def _awq(fmt: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Weight:
    output = np.arange(n)
    nibble = np.array([0, 4, 1, 5, 2, 6, 3, 7])[output % 8]
    codes = tensors["qweight"].astype(np.int64)[:, output // 8] >> (4 * nibble) & 15
    zeros = tensors["qzeros"].astype(np.int64)[:, output // 8] >> (4 * nibble) & 15
    group = np.arange(k) // fmt.block_k
    return _affine(tensors["scales"].astype(np.float64)[group].T, codes.T, zeros[group].T)


# ggml: a row is a sequence of self-contained blocks [n, blocks, bytes]; each function gives Weight [n, blocks, width].


def _ggml(fmt: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Weight:
    width = fmt.super_block or fmt.block_k
    blocks = tensors["blocks"].reshape(n, k // width, -1)
    weight = _BLOCKS[fmt.base.id](blocks.astype(np.int64), np.arange(width))
    value, magnitude, apart, scale = (
        part.reshape(n, k) for part in (weight.value, weight.magnitude, weight.apart, weight.scale)
    )
    return Weight(value, magnitude, apart, np.arange(k), scale)


def _half(blocks: Int, at: int) -> Float64:
    bits = (blocks[..., at] | blocks[..., at + 1] << 8).astype(np.uint16)
    return bits.view(np.float16).astype(np.float64)[..., None]


def _field(blocks: Int, byte: Int, shift: Int | int, bits: int) -> Int:
    return blocks[..., byte] >> shift & ((1 << bits) - 1)


def _nibble_halves(blocks: Int, j: Int, start: int) -> Int:
    """32 codes in 16 bytes: the first half of the block in the low nibbles."""
    return _field(blocks, start + j % 16, 4 * (j // 16), 4)


def _signed_bytes(blocks: Int, byte: Int) -> Int:
    return (blocks[..., byte] ^ 128) - 128


def _q4_0(blocks: Int, j: Int) -> Weight:
    return _signed(_half(blocks, 0), _nibble_halves(blocks, j, 2), 8)


def _q4_1(blocks: Int, j: Int) -> Weight:
    return _with_minimum(_half(blocks, 0), _nibble_halves(blocks, j, 4), -_half(blocks, 2))


def _q5_0(blocks: Int, j: Int) -> Weight:
    codes = _nibble_halves(blocks, j, 6) | _field(blocks, 2 + j // 8, j % 8, 1) << 4
    return _signed(_half(blocks, 0), codes, 16)


def _q5_1(blocks: Int, j: Int) -> Weight:
    codes = _nibble_halves(blocks, j, 8) | _field(blocks, 4 + j // 8, j % 8, 1) << 4
    return _with_minimum(_half(blocks, 0), codes, -_half(blocks, 2))


def _q8_0(blocks: Int, j: Int) -> Weight:
    return _signed(_half(blocks, 0), _signed_bytes(blocks, 2 + j), 0)


def _q2_k(blocks: Int, j: Int) -> Weight:
    codes = _field(blocks, 16 + 32 * (j // 128) + j % 32, 2 * (j % 128 // 32), 2)
    scale = _half(blocks, 80) * _field(blocks, j // 16, 0, 4)
    return _with_minimum(scale, codes, _half(blocks, 82) * _field(blocks, j // 16, 4, 4))


def _q3_k(blocks: Int, j: Int) -> Weight:
    codes = _field(blocks, 32 + 32 * (j // 128) + j % 32, 2 * (j % 128 // 32), 2)
    codes = codes | _field(blocks, j % 32, j // 32, 1) << 2
    sub = j // 16
    six_bits = _field(blocks, 96 + sub % 8, 4 * (sub // 8), 4) | _field(blocks, 104 + sub % 4, 2 * (sub // 4), 2) << 4
    return _signed(_half(blocks, 108) * (six_bits - 32), codes, 4)


def _k_scales(blocks: Int, j: Int) -> tuple[Float64, Float64]:
    """Scale and minimum of each weight of q4_K and q5_K."""
    sub = np.arange(8)
    late, four = sub >= 4, sub % 4
    six_bits = []
    for base, shift in ((4, 0), (8, 4)):  # the eight scales, then the eight minimums
        early = _field(blocks, base + four, 0, 6)
        joined = _field(blocks, 12 + four, shift, 4) | _field(blocks, base + four, 6, 2) << 4
        six_bits.append(np.where(late, joined, early)[..., j // 32])
    return _half(blocks, 0) * six_bits[0], _half(blocks, 2) * six_bits[1]


def _q4_k(blocks: Int, j: Int) -> Weight:
    codes = _field(blocks, 16 + 32 * (j // 64) + j % 32, 4 * (j % 64 // 32), 4)
    scale, minimum = _k_scales(blocks, j)
    return _with_minimum(scale, codes, minimum)


def _q5_k(blocks: Int, j: Int) -> Weight:
    codes = _field(blocks, 48 + 32 * (j // 64) + j % 32, 4 * (j % 64 // 32), 4)
    scale, minimum = _k_scales(blocks, j)
    return _with_minimum(scale, codes | _field(blocks, 16 + j % 32, j // 32, 1) << 4, minimum)


def _q6_k(blocks: Int, j: Int) -> Weight:
    low = _field(blocks, 64 * (j // 128) + j % 64, 4 * (j % 128 // 64), 4)
    high = _field(blocks, 128 + 32 * (j // 128) + j % 32, 2 * (j % 128 // 32), 2)
    scale = _half(blocks, 208) * _signed_bytes(blocks, 192 + j // 16)
    return _signed(scale, low | high << 4, 32)


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def _iq4_nl(blocks: Int, j: Int) -> Weight:
    return _signed(_half(blocks, 0), _IQ4[_nibble_halves(blocks, j, 2)], 0)


def _iq4_xs(blocks: Int, j: Int) -> Weight:
    sub = j // 32
    codes = _field(blocks, 8 + 16 * sub + j % 16, 4 * (j % 32 // 16), 4)
    six_bits = _field(blocks, 4 + sub // 2, 4 * (sub % 2), 4) | _field(blocks, 2 + sub // 4, 2 * (sub % 4), 2) << 4
    return _signed(_half(blocks, 0) * (six_bits - 32), _IQ4[codes], 0)


_TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12])


def _mxfp4(blocks: Int, j: Int) -> Weight:
    codes = _nibble_halves(blocks, j, 1)
    value = np.where(codes >= 8, -1, 1) * _TWICE_E2M1[codes & 7]
    scale = np.where(blocks[..., :1] == 255, np.nan, np.ldexp(1.0, blocks[..., :1] - 127))
    return replace(_signed(scale / 2, value, 0), scale=np.broadcast_to(scale, value.shape))


_BLOCKS: Mapping[str, Callable[[Int, Int], Weight]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q2_K": _q2_k,
    "q3_K": _q3_k,
    "q4_K": _q4_k,
    "q5_K": _q5_k,
    "q6_K": _q6_k,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
}


_PACKINGS: Mapping[str, Callable[[QuantFormat, Mapping[str, Array], int, int], Weight]] = {
    "dense": _dense,
    "nibble_lo": _grouped,
    "gptq_v1": _gptq,
    "gptq_v2": _gptq,
    "awq": _awq,
    "ggml": _ggml,
}
