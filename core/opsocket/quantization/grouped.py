"""Canonical weights: integer codes with one scale, and perhaps one minimum, per group of columns.

Backends repack from here. The unpacking is vectorised and independent of `reference`, which the tests hold it to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError

if TYPE_CHECKING:
    from opsocket.quantization.formats import QuantFormat

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 20  # weights dequantized at a time: the temporaries stay in cache
_TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""What the codes of iq4_nl and iq4_xs stand for: 16 integers, denser around 0, which is not among them."""
_AWQ_NIBBLE_OF_COLUMN = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32)


@dataclass(frozen=True, eq=False)
class ScaleCodes:
    """Scales that are codes themselves: scale[n, g] = unit[n, g // U] * codes[n, g], exactly, U to a super-block.

    The scales and the minimums of K-quants and of iq4_xs, which as f32 take up to a third of a weight's memory. codes:
    i8 [N, groups]. unit: f32 [N, groups / U], each of them an f16.
    """

    codes: npt.NDArray[np.int8]
    unit: npt.NDArray[np.float32]

    def of_rows(self, n: int) -> ScaleCodes:
        """The same with the super-blocks of each of n rows side by side."""
        return ScaleCodes(self.codes.reshape(n, -1), self.unit.reshape(n, -1))

    def rows(self, first: int, last: int) -> ScaleCodes:
        return ScaleCodes(self.codes[first:last], self.unit[first:last])

    def floats(self) -> npt.NDArray[np.float32]:
        """The scales, f32 [N, groups]."""
        of_units = self.codes.reshape(*self.unit.shape, -1)
        return (self.unit[:, :, None] * of_units).reshape(self.codes.shape)


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """W[n, p] = scale[n, g] * codes[n, j] - minimum[n, g], g = j // group_size, p = input_permutation[j] (or j).

    codes: i8 [N, K], an integer zero point already subtracted. scale, minimum: f32 [N, K / group_size], exact.
    input_permutation: i64 [K] or None: column j of codes multiplies x[:, input_permutation[j]].
    group_size == k means one scale per row. bits: width of the stored codes, 8 where these are indices of `IQ4`; with a
    zero point subtracted, or as twice an e2m1, a code may take one bit more. scale_codes, minimum_codes: the same
    scales and minimums as the format stores them, where it has scales of scales; a backend may do without.
    """

    n: int
    k: int
    group_size: int
    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    minimum: npt.NDArray[np.float32] | None
    input_permutation: npt.NDArray[np.int64] | None
    bits: int
    scale_codes: ScaleCodes | None = None
    minimum_codes: ScaleCodes | None = None

    def rows(self, first: int, last: int) -> GroupedWeight:
        """Rows first to last - 1: views."""
        return replace(
            self,
            n=last - first,
            codes=self.codes[first:last],
            scale=self.scale[first:last],
            minimum=None if self.minimum is None else self.minimum[first:last],
            scale_codes=self.scale_codes and self.scale_codes.rows(first, last),
            minimum_codes=self.minimum_codes and self.minimum_codes.rows(first, last),
        )

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weight, f32 [N, K], columns in their original order, rounded once per operation."""
        groups = self.k // self.group_size
        out = np.empty((self.n, self.k), np.float32)
        rows = max(1, _CHUNK // self.k)
        for start in range(0, self.n, rows):
            part = slice(start, min(start + rows, self.n))
            values = self.codes[part].reshape(-1, groups, self.group_size) * self.scale[part, :, None]
            if self.minimum is not None:
                values -= self.minimum[part, :, None]
            if self.input_permutation is None:
                out[part] = values.reshape(-1, self.k)
            else:
                out[part, self.input_permutation] = values.reshape(-1, self.k)
        return out


def unpack(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> GroupedWeight:
    """Canonical form of validated tensors. Called through `QuantFormat.group`."""
    if not format.has_integer_codes:
        raise ContractError("format", "a format with integer codes", format.id)
    match format.packing:
        case "dense":
            return GroupedWeight(n, k, k, tensors["weight"], tensors["scale"][:, None], None, None, format.bits)
        case "nibble_lo":
            return _unpack_nibble_lo(format, tensors, n, k)
        case "gptq_v1" | "gptq_v2" | "awq":
            return _unpack_words(format, tensors, n, k)
        case "ggml":
            return _unpack_ggml(format, tensors["blocks"], n, k)
    raise ContractError("format.packing", "a packing that opsocket knows, or a subclass's own group", format)


def _unpack_nibble_lo(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> GroupedWeight:
    packed, per_byte = tensors["codes"], 8 // format.bits
    codes = np.empty((n, k), np.int8)
    for place in range(per_byte):
        codes[:, place::per_byte] = (packed >> np.uint8(place * format.bits)) & np.uint8((1 << format.bits) - 1)
    if format.zero == "int":
        codes.reshape(n, -1, format.block_k)[...] -= tensors["zero"].view(np.int8)[:, :, None]
    else:
        codes -= np.int8(1 << (format.bits - 1))
    scale = tensors["scale"].astype(np.float32)
    return GroupedWeight(n, k, format.block_k, codes, scale, None, None, format.bits)


def _unpack_words(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> GroupedWeight:
    """GPTQ and AWQ: i32 words of eight 4-bit codes, along K and along N respectively, stored [K, N]."""
    in_order = np.arange(8, dtype=np.uint32)
    along_n = in_order if format.packing != "awq" else _AWQ_NIBBLE_OF_COLUMN
    zero = _words_along_n(tensors["qzeros"], along_n).T
    if format.packing == "gptq_v1":
        zero = zero + np.int8(1)
    if format.packing == "awq":
        codes = np.ascontiguousarray(_words_along_n(tensors["qweight"], along_n).T)
    else:
        codes = np.empty((n, k), np.int8)
        for place in range(8):
            codes[:, place::8] = (tensors["qweight"].view(np.uint32) >> np.uint32(4 * place) & np.uint32(15)).T
    permutation = None
    if format.g_idx and np.any(tensors["g_idx"][1:] < tensors["g_idx"][:-1]):
        permutation = np.argsort(tensors["g_idx"], kind="stable").astype(np.int64)
        codes = codes[:, permutation]
    codes.reshape(n, -1, format.block_k)[...] -= zero[:, :, None]
    scale = np.ascontiguousarray(tensors["scales"].T, dtype=np.float32)
    return GroupedWeight(n, k, format.block_k, codes, scale, None, permutation, format.bits)


def _words_along_n(words: Array, nibble_of_column: npt.NDArray[np.uint32]) -> npt.NDArray[np.int8]:
    """i32 [R, N/8] -> i8 [R, N]."""
    out = np.empty((words.shape[0], words.shape[1] * 8), np.int8)
    for column, nibble in enumerate(nibble_of_column):
        out[:, column::8] = words.view(np.uint32) >> (nibble * np.uint32(4)) & np.uint32(15)
    return out


def _unpack_ggml(format: QuantFormat, rows: Bytes, n: int, k: int) -> GroupedWeight:
    blocks = rows.reshape(-1, format.block_bytes)
    minimum: Array | None = None
    scales: ScaleCodes | None = None  # of blocks
    minimums: ScaleCodes | None = None
    match format.base.id:
        case "q4_0":
            codes, scale = _halves(_bytes(blocks, 2, 16)) - np.int8(8), _f16(blocks, 0)
        case "q4_1":
            codes, scale, minimum = _halves(_bytes(blocks, 4, 16)), _f16(blocks, 0), -_f16(blocks, 2)
        case "q5_0":
            fifth = _bits(_bytes(blocks, 2, 4))
            codes, scale = (_halves(_bytes(blocks, 6, 16)) | fifth << np.int8(4)) - np.int8(16), _f16(blocks, 0)
        case "q5_1":
            fifth = _bits(_bytes(blocks, 4, 4))
            codes = _halves(_bytes(blocks, 8, 16)) | fifth << np.int8(4)
            scale, minimum = _f16(blocks, 0), -_f16(blocks, 2)
        case "q8_0":
            codes, scale = _bytes(blocks, 2, 32).view(np.int8), _f16(blocks, 0)
        case "q2_K":
            codes = _planes(_bytes(blocks, 16, 64).reshape(-1, 2, 32), 2)
            low, high = np.moveaxis(_planes(_bytes(blocks, 0, 16), 4), 1, 0)
            scales = _coded(low, _f16(blocks, 80))
            minimums = _coded(high, _f16(blocks, 82))
        case "q3_K":
            low = _planes(_bytes(blocks, 32, 64).reshape(-1, 2, 32), 2)
            high = _planes(_bytes(blocks, 0, 32), 1)
            codes = (low.reshape(high.shape) | high << np.int8(2)) - np.int8(4)
            scales = _coded(_six_bit_scales(_bytes(blocks, 96, 12)), _f16(blocks, 108))
        case "q4_K":
            codes = _planes(_bytes(blocks, 16, 128).reshape(-1, 4, 32), 4)
            of_scales, of_minimums = _six_bit_pairs(_bytes(blocks, 4, 12))
            scales, minimums = _coded(of_scales, _f16(blocks, 0)), _coded(of_minimums, _f16(blocks, 2))
        case "q5_K":
            low = _planes(_bytes(blocks, 48, 128).reshape(-1, 4, 32), 4)
            fifth = _planes(_bytes(blocks, 16, 32), 1)
            codes = low.reshape(fifth.shape) | fifth << np.int8(4)
            of_scales, of_minimums = _six_bit_pairs(_bytes(blocks, 4, 12))
            scales, minimums = _coded(of_scales, _f16(blocks, 0)), _coded(of_minimums, _f16(blocks, 2))
        case "q6_K":
            low = _planes(_bytes(blocks, 0, 128).reshape(-1, 2, 64), 4)
            high = _planes(_bytes(blocks, 128, 64).reshape(-1, 2, 32), 2)
            codes = (low.reshape(high.shape) | high << np.int8(4)) - np.int8(32)
            scales = _coded(_bytes(blocks, 192, 16), _f16(blocks, 208))
        case "iq4_nl":
            codes, scale = _looked_up(IQ4, _halves(_bytes(blocks, 2, 16))), _f16(blocks, 0)
        case "iq4_xs":
            codes = _looked_up(IQ4, _planes(_bytes(blocks, 8, 128).reshape(-1, 8, 16), 4))
            # In the order of the bits: of each byte the lowest first.
            low = _planes(_bytes(blocks, 4, 4)[:, :, None], 4).reshape(-1, 8)
            top = _planes(_bytes(blocks, 2, 2)[:, :, None], 2).reshape(-1, 8)
            scales = _coded((low | top << np.int8(4)) - np.int8(32), _f16(blocks, 0))
        case "mxfp4":
            codes = _looked_up(_TWICE_E2M1, _halves(_bytes(blocks, 1, 16)))
            # Halved, as the codes are doubled; 2^-128 is a subnormal number, and exact.
            scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
            scale[blocks[:, :1] == 255] = np.nan
        case _:
            raise ContractError("format.id", "a ggml format that opsocket knows", format.id)
    codes, bits = np.ascontiguousarray(codes).reshape(n, k), format.integer_bits
    if scales is None:
        scale = np.ascontiguousarray(scale).reshape(n, -1)
        minimum = None if minimum is None else minimum.reshape(n, -1)
        return GroupedWeight(n, k, format.block_k, codes, scale, minimum, None, bits)
    scales = scales.of_rows(n)
    minimums = None if minimums is None else minimums.of_rows(n)
    minimum = None if minimums is None else minimums.floats()
    return GroupedWeight(n, k, format.block_k, codes, scales.floats(), minimum, None, bits, scales, minimums)


def _coded(codes: Array, unit: npt.NDArray[np.float32]) -> ScaleCodes:
    return ScaleCodes(np.ascontiguousarray(codes).view(np.int8), unit)


# Elements as wide as possible: NumPy copies 16 bytes that are one element in a tenth of the time of 16 that are a row.


def _field(blocks: Bytes, offset: int, kind: str) -> Array:
    """One element of every block, [blocks]: a view."""
    block = np.dtype({"names": ["field"], "formats": [kind], "offsets": [offset], "itemsize": blocks.shape[1]})
    return np.ascontiguousarray(blocks).view(block)[:, 0]["field"]


def _bytes(blocks: Bytes, offset: int, count: int) -> Bytes:
    """Some bytes of every block, u8 [blocks, count], contiguous."""
    return np.ascontiguousarray(_field(blocks, offset, f"V{count}")).view(np.uint8).reshape(-1, count)


def _f16(blocks: Bytes, offset: int) -> npt.NDArray[np.float32]:
    """The f16 at a byte offset of every block, as f32 [blocks, 1]."""
    return _field(blocks, offset, "<f2").astype(np.float32)[:, None]


def _bits(packed: Bytes) -> npt.NDArray[np.int8]:
    """u8 [blocks, W] -> i8 [blocks, 8 W], the lowest bit of each byte first."""
    bits = np.unpackbits(packed.reshape(-1), bitorder="little")
    return bits.view(np.int8).reshape(len(packed), -1)


def _halves(packed: Bytes) -> npt.NDArray[np.int8]:
    """u8 [blocks, 16] -> i8 [blocks, 32]: the low nibbles, then the high ones."""
    return _planes(packed, 4).reshape(-1, 32)


def _planes(packed: Bytes, bits: int) -> npt.NDArray[np.int8]:
    """u8 [..., W] -> i8 [..., 8 / bits, W]: plane p holds bits [p * bits, (p + 1) * bits) of every byte."""
    packed, count, width = np.ascontiguousarray(packed), 8 // bits, packed.shape[-1]
    planes = np.empty((*packed.shape[:-1], count), f"V{width}")
    for p in range(count):
        plane = packed >> np.uint8(p * bits) if p else packed
        if p + 1 < count:
            plane = plane & np.uint8((1 << bits) - 1)
        planes[..., p] = plane.view(f"V{width}")[..., 0]
    return planes.view(np.int8).reshape(*packed.shape[:-1], count, width)


def _looked_up(table: npt.NDArray[np.int8], places: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    # Sooner than table[places], which looks for places beyond the table.
    found: npt.NDArray[np.int8] = np.take(table, places, mode="wrap")
    return found


def _six_bit_scales(packed: Bytes) -> npt.NDArray[np.int8]:
    """u8 [blocks, 12] -> i8 [blocks, 16], as q3_K has them: the low nibbles of bytes 0-7, then the high ones, and on
    top of those the pairs of bits of bytes 8-11, the lowest pair of all four first; less 32."""
    low = _planes(packed[:, :8], 4).reshape(-1, 16)
    top = _planes(packed[:, 8:], 2).reshape(-1, 16)
    scales: npt.NDArray[np.int8] = (low | top << np.int8(4)) - np.int8(32)
    return scales


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """u8 [blocks, 12] -> scales, minimums u8 [blocks, 8] each, as q4_K and q5_K interleave them.

    Pairs 0-3 are the low six bits of bytes 0-3 and 4-7; pairs 4-7 have their low nibbles in bytes 8-11 and their
    upper two bits on top of bytes 0-3 and 4-7.
    """
    first, second, last = packed.view("<u4").T  # four bytes at a time: no bit of one comes to stand in another
    low6, low4, top2 = (np.uint32(0x01010101 * bits) for bits in (0x3F, 0x0F, 0x30))
    two = np.uint32(2)
    scales = np.stack((first & low6, last & low4 | first >> two & top2), axis=1).view(np.uint8)
    minimums = np.stack((second & low6, last >> np.uint32(4) & low4 | second >> two & top2), axis=1).view(np.uint8)
    return scales, minimums
