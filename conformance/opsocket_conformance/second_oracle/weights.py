"""Every weight format as ONNX primitives: bits are shifted and masked as unsigned integers, floats are made of their
bits, and what comes out is exact in float64.

Layouts: see `opsocket.quantization` and its `reference`. Here a tensor is unpacked whole, there one weight at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError
from opsocket.quantization import QuantFormat
from opsocket_conformance.second_oracle.answer import Part
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Tensor, Writer

Array = npt.NDArray[Any]


def dequantize(evaluate: Evaluator, fmt: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> tuple[Part, ...]:
    """The weight f64[N, K], the size of the terms it is made of, what of them is stored for a group, the order of its
    columns, and their scales; all exactly."""
    value, magnitude, apart, scale = evaluate(_graph(fmt), **tensors)
    order = evaluate(_sorted(), group=tensors["g_idx"])[0] if fmt.g_idx else np.arange(k)
    return (
        Part("value", value),
        Part("magnitude", magnitude),
        Part("apart", apart),
        Part("order", order),
        Part("scale", scale),
    )


@dataclass(frozen=True, eq=False)
class _Terms:
    """w = scale * (code - zero) - minimum, which broadcast to [N, K], or to [N, ...] with K unfolded.

    zero: stored, or the 2^(bits-1) that makes codes signed; a kernel may sum either apart.
    """

    scale: Tensor
    code: Tensor
    zero: Tensor | float = 0.0
    minimum: Tensor | None = None


@cache
def _graph(fmt: QuantFormat) -> Graph:
    g = Writer()
    if fmt.is_float:
        weight = _floats(g, fmt.id)
        return g.finish(value=weight, magnitude=g("Abs", weight), apart=weight * 0.0, scale=weight * 0.0 + 1.0)
    terms = _terms(g, fmt)
    zero = terms.zero if isinstance(terms.zero, Tensor) else g.constant(terms.zero, "f64")
    value = terms.scale * (terms.code - zero)
    magnitude = g("Abs", terms.scale) * (g("Abs", terms.code) + g("Abs", zero))
    stored = terms.scale * zero if isinstance(terms.zero, Tensor) else terms.scale * 0.0
    if terms.minimum is not None:
        value, magnitude, stored = value - terms.minimum, magnitude + g("Abs", terms.minimum), terms.minimum
    apart, scale = (g("Expand", part, g("Shape", value, dtype="i64")) for part in (stored, terms.scale))
    parts = {"value": value, "magnitude": magnitude, "apart": apart, "scale": scale}
    return g.finish(**{name: part.reshape(0, -1) for name, part in parts.items()})


@cache
def _sorted() -> Graph:
    """Where each column goes among those ordered by group, and then what comes from where."""
    g = Writer()
    group = g.input("group", "i32").cast("i64")
    count = g("Squeeze", g("Shape", group))
    # Distinct keys: group first, then the column.
    own = g("Range", count * 0, count, 1)
    key = group * count + own
    place = g("ReduceSum", (key.unsqueeze(0) < key.unsqueeze(1)).cast("i64"), [1], keepdims=0)
    return g.finish(order=g("ScatterElements", own, place, own, axis=0))


def _terms(g: Writer, fmt: QuantFormat) -> _Terms:
    match fmt.packing:
        case "dense" if fmt.code == "f8e4m3fn":
            weight = g.input("weight", "u8")
            return _Terms(_of_blocks(weight, fmt), _e4m3(weight))
        case "dense":
            scale = g.input("scale", fmt.scale_dtype).cast("f64").unsqueeze(1)
            return _Terms(scale, g.input("weight", "i8").cast("f64"))
        case "nibble_lo":
            return _grouped(g, fmt)
        case "gptq_v1" | "gptq_v2" | "awq":
            return _words(g, fmt)
        case "ggml" if fmt.base.id in _BLOCKS:
            return _BLOCKS[fmt.base.id](g.input("blocks", "u8").reshape(0, -1, fmt.block_bytes))
    raise ContractError("format.packing", "a packing that the second oracle has a graph for", fmt)


def _floats(g: Writer, dtype: str) -> Tensor:
    """A bf16 is the upper half of an f32."""
    if dtype != "bf16":
        return g.input("weight", dtype).cast("f64")
    return (g.input("weight", "u16").cast("u32") << 16).bits_as("f32").cast("f64")


def _small(bits: Tensor, magnitude: int, fraction: int, bias: int) -> Tensor:
    """A float of a sign, then `magnitude` bits of which `fraction` are its fraction: its bits, as those of an f32 with
    another bias, give it but for a power of two, subnormal numbers included."""
    size = (bits & ((1 << magnitude) - 1)).cast("u32") << (23 - fraction)
    value = size.bits_as("f32").cast("f64") * 2.0 ** (127 - bias)
    return value * (1.0 - (bits >> magnitude).cast("f64") * 2.0)


def _e4m3(bits: Tensor) -> Tensor:
    g = bits.writer
    return g("Where", (bits & 127).equals(127), g.constant(np.nan, "f64"), _small(bits, 7, 3, 7))


def _of_blocks(weight: Tensor, fmt: QuantFormat) -> Tensor:
    """[N, K] from scales of blocks of rows and columns, or what broadcasts to it."""
    g = weight.writer
    scale = g.input("scale", fmt.scale_dtype).cast("f64")
    if not fmt.block_k:
        return scale.unsqueeze(1)
    n, k = (g("Squeeze", g("Shape", weight, dtype="i64", start=axis, end=axis + 1)) for axis in (0, 1))
    of_rows = g("Gather", scale, g("Range", n * 0, n, 1) // fmt.block_n, axis=0)
    return g("Gather", of_rows, g("Range", k * 0, k, 1) // fmt.block_k, axis=1)


def _fields(words: Tensor, bits: int, shifts: Sequence[int], inner: int = 0) -> Tensor:
    """The fields of `bits` bits at these shifts, along a new axis that has `inner` of the dimensions after it."""
    unsigned = {"u8": np.uint8, "u32": np.uint32}[words.dtype]
    along = np.array(shifts, unsigned).reshape(-1, *[1] * inner)
    return (words.unsqueeze(-1 - inner) >> along) & ((1 << bits) - 1)


# ---- groups of columns, codes packed along K or N


def _grouped(g: Writer, fmt: QuantFormat) -> _Terms:
    """Lowest bits first along K. Without a stored zero point the code is the integer plus 2^(bits-1)."""
    codes = _fields(g.input("codes", "u8"), fmt.bits, range(0, 8, fmt.bits)).reshape(0, -1, fmt.block_k).cast("f64")
    scale = g.input("scale", fmt.scale_dtype).cast("f64").unsqueeze(2)
    if fmt.zero == "int":
        return _Terms(scale, codes, zero=g.input("zero", "u8").cast("f64").unsqueeze(2))
    return _Terms(scale, codes, zero=2.0 ** (fmt.bits - 1))


_LOWEST_FIRST: Final = tuple(range(0, 32, 4))
_AWQ: Final = tuple(4 * (0, 2, 4, 6, 1, 3, 5, 7).index(column) for column in range(8))
"""Where the nibbles of eight neighbours are: nibble i of an AWQ word belongs to output (0, 2, 4, 6, 1, 3, 5, 7)[i]."""


def _words(g: Writer, fmt: QuantFormat) -> _Terms:
    """32-bit words of eight nibbles: GPTQ's [K / 8, N] along K, AWQ's [K, N / 8] along N; zero points along N."""
    awq = fmt.packing == "awq"
    shifts = _AWQ if awq else _LOWEST_FIRST
    words = g.input("qweight", "i32").bits_as("u32")
    codes = _fields(words if awq else _transposed(words), 4, shifts).reshape(0, -1).cast("f64")
    zero = _fields(g.input("qzeros", "i32").bits_as("u32"), 4, shifts).reshape(0, -1).cast("f64")
    if fmt.packing == "gptq_v1":
        zero = zero + 1.0
    codes = _transposed(codes) if awq else codes
    if fmt.g_idx:
        group = g.input("g_idx", "i32")
    else:
        k = g("Squeeze", g("Shape", codes, dtype="i64", start=1, end=2))
        group = g("Range", k * 0, k, 1) // fmt.block_k
    scales = g.input("scales", fmt.scale_dtype).cast("f64")
    return _Terms(_of_columns(scales, group), codes, zero=_of_columns(zero, group))


def _of_columns(of_groups: Tensor, group: Tensor) -> Tensor:
    """[G, N] of groups to [N, K] of columns."""
    return _transposed(of_groups.writer("Gather", of_groups, group, axis=0))


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.writer("Transpose", matrix, perm=[1, 0])


# ---- ggml's blocks: u8 [N, blocks, bytes of a block] -> terms [N, blocks, ...] in the order of the weights


def _half(block: Tensor, byte: int) -> Tensor:
    """[N, blocks, 1]: two bytes, low one first, as an IEEE half."""
    low, high = (block.part(2, at, at + 1).cast("u16") for at in (byte, byte + 1))
    return (low | (high << 8)).bits_as("f16").cast("f64")


def _nibbles(block: Tensor, byte: int) -> Tensor:
    """16 bytes to [N, blocks, 32]: first the low nibbles, then the high."""
    return _fields(block.part(2, byte, byte + 16), 4, (0, 4), inner=1).reshape(0, 0, -1)


def _q4_0(block: Tensor) -> _Terms:
    return _Terms(_half(block, 0), _nibbles(block, 2).cast("f64"), zero=8.0)


def _q4_1(block: Tensor) -> _Terms:
    """d * q + m: the minimum is stored with the other sign."""
    return _Terms(_half(block, 0), _nibbles(block, 4).cast("f64"), minimum=-_half(block, 2))


def _q5_0(block: Tensor) -> _Terms:
    """The fifth bits are the 32 bits of bytes 2 to 5, in order."""
    fifth = _fields(block.part(2, 2, 6), 1, range(8)).reshape(0, 0, -1)
    return _Terms(_half(block, 0), (_nibbles(block, 6) | (fifth << 4)).cast("f64"), zero=16.0)


def _q5_1(block: Tensor) -> _Terms:
    """As q5_0 two bytes later, without its zero point; d * q + m."""
    fifth = _fields(block.part(2, 4, 8), 1, range(8)).reshape(0, 0, -1)
    codes = (_nibbles(block, 8) | (fifth << 4)).cast("f64")
    return _Terms(_half(block, 0), codes, minimum=-_half(block, 2))


def _q8_0(block: Tensor) -> _Terms:
    return _Terms(_half(block, 0), block.part(2, 2, 34).bits_as("i8").cast("f64"))


def _q2_k(block: Tensor) -> _Terms:
    """Scale and minimum of each 16 in the nibbles of bytes 0 to 15; each half of the block in the bit pairs of 32."""
    small = block.part(2, 0, 16)
    codes = _fields(block.part(2, 16, 80).reshape(0, 0, 2, 32), 2, (0, 2, 4, 6), inner=1).reshape(0, 0, 16, 16)
    scale = _half(block, 80) * (small & 15).cast("f64")
    minimum = _half(block, 82) * (small >> 4).cast("f64")
    return _Terms(scale.unsqueeze(3), codes.cast("f64"), minimum=minimum.unsqueeze(3))


def _q3_k(block: Tensor) -> _Terms:
    """Bit b of byte i on top of the code b * 32 + i of bit pairs; six-bit scales of each 16, the nibbles of eight bytes
    and the bit pairs of four on top of those, of which 32 is 0."""
    low = _fields(block.part(2, 32, 96).reshape(0, 0, 2, 32), 2, (0, 2, 4, 6), inner=1).reshape(0, 0, -1)
    third = _fields(block.part(2, 0, 32), 1, range(8), inner=1).reshape(0, 0, -1)
    codes = (low | (third << 2)).cast("f64").reshape(0, 0, 16, 16)
    nibbles = _fields(block.part(2, 96, 104), 4, (0, 4), inner=1).reshape(0, 0, -1)
    pairs = _fields(block.part(2, 104, 108), 2, (0, 2, 4, 6), inner=1).reshape(0, 0, -1)
    scale = _half(block, 108) * ((nibbles | (pairs << 4)).cast("f64") - 32.0)
    return _Terms(scale.unsqueeze(3), codes, zero=4.0)


def _k_scales(block: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minimums of each 32, [N, blocks, 8, 1]: six bits of both from three times four bytes, scales, minimums
    and the low halves of the last four of both, whose high halves lie on top of the first two."""
    join = block.writer
    scales, minimums, low = (block.part(2, at, at + 4) for at in (4, 8, 12))
    scale = join("Concat", scales & 63, (low & 15) | ((scales >> 6) << 4), axis=2).cast("f64")
    minimum = join("Concat", minimums & 63, (low >> 4) | ((minimums >> 6) << 4), axis=2).cast("f64")
    return (_half(block, 0) * scale).unsqueeze(3), (_half(block, 2) * minimum).unsqueeze(3)


def _q4_k(block: Tensor) -> _Terms:
    codes = _fields(block.part(2, 16, 144).reshape(0, 0, 4, 32), 4, (0, 4), inner=1).reshape(0, 0, 8, 32)
    scale, minimum = _k_scales(block)
    return _Terms(scale, codes.cast("f64"), minimum=minimum)


def _q5_k(block: Tensor) -> _Terms:
    """Bit b of byte i of 32 on top of the nibble b * 32 + i."""
    low = _fields(block.part(2, 48, 176).reshape(0, 0, 4, 32), 4, (0, 4), inner=1).reshape(0, 0, 8, 32)
    fifth = _fields(block.part(2, 16, 48), 1, range(8), inner=1)
    scale, minimum = _k_scales(block)
    return _Terms(scale, (low | (fifth << 4)).cast("f64"), minimum=minimum)


def _q6_k(block: Tensor) -> _Terms:
    """Each half of the block: 64 bytes of nibbles, 32 bytes of bit pairs on top of them; signed scales of each 16."""
    low = _fields(block.part(2, 0, 128).reshape(0, 0, 2, 64), 4, (0, 4), inner=1).reshape(0, 0, -1)
    high = _fields(block.part(2, 128, 192).reshape(0, 0, 2, 32), 2, (0, 2, 4, 6), inner=1).reshape(0, 0, -1)
    codes = (low | (high << 4)).cast("f64").reshape(0, 0, 16, 16)
    scale = _half(block, 208) * block.part(2, 192, 208).bits_as("i8").cast("f64")
    return _Terms(scale.unsqueeze(3), codes, zero=32.0)


_IQ4: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _of_iq4(codes: Tensor) -> Tensor:
    g = codes.writer
    return g("Gather", g.constant(_IQ4, "f64"), codes.cast("i64"), axis=0)


def _iq4_nl(block: Tensor) -> _Terms:
    return _Terms(_half(block, 0), _of_iq4(_nibbles(block, 2)))


def _iq4_xs(block: Tensor) -> _Terms:
    """Eight times the nibbles of iq4_nl; six-bit scales of each 32, the nibbles of four bytes in their order, and the
    bit pairs of the two before on top of those, of which 32 is 0."""
    codes = _fields(block.part(2, 8, 136).reshape(0, 0, 8, 16), 4, (0, 4), inner=1).reshape(0, 0, 8, 32)
    low = _fields(block.part(2, 4, 8), 4, (0, 4)).reshape(0, 0, -1)
    top = _fields(block.part(2, 2, 4), 2, (0, 2, 4, 6)).reshape(0, 0, -1)
    scale = _half(block, 0) * ((low | (top << 4)).cast("f64") - 32.0)
    return _Terms(scale.unsqueeze(3), _of_iq4(codes))


def _mxfp4(block: Tensor) -> _Terms:
    """An e8m0 is the exponent of an f32, whose lowest two would be 0 and a subnormal number's, and highest infinity."""
    g, exponent = block.writer, block.part(2, 0, 1)
    normal = (exponent.cast("u32") << 23).bits_as("f32").cast("f64")
    scale = g("Where", exponent.equals(0), g.constant(2.0**-127, "f64"), normal)
    scale = g("Where", exponent.equals(255), g.constant(np.nan, "f64"), scale)
    return _Terms(scale, _small(_nibbles(block, 1), 3, 1, 1))


_BLOCKS: Final[Mapping[str, Callable[[Tensor], _Terms]]] = {
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
