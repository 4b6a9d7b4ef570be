"""What goes wrong where a weight is prepared: its codes, scales, zero points and groups. Every operator that takes a
weight prepares it so; the faults are put into the tensors that a right backend is given instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import Request
from opsocket.quantization import QuantFormat, get_format
from opsocket_conformance.floats import round_to
from opsocket_conformance.power.fault import Fault

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Change = Callable[[Array, QuantFormat], Array]


def _tensor(name: str, change: Change) -> Callable[[Tensors, Request], Tensors]:
    """One tensor changed."""

    def tensors(given: Tensors, request: Request) -> Tensors:
        fmt = get_format(request.spec.weight_format)  # type: ignore[attr-defined]
        if name not in given:
            return given
        return given | {name: np.ascontiguousarray(change(given[name], fmt), given[name].dtype)}

    return tensors


@dataclass(frozen=True)
class _Of:
    """Requests whose weight format begins so."""

    starts: tuple[str, ...]

    def __call__(self, request: Request) -> bool:
        return bool(getattr(request.spec, "weight_format", "").startswith(self.starts))


def _of(*starts: str) -> _Of:
    return _Of(starts)


def _with_tensor(name: str) -> Callable[[Request], bool]:
    def where(request: Request) -> bool:
        spec: Any = request.spec
        return name in get_format(spec.weight_format).tensor_specs(spec.n, spec.k)

    return where


def _blocks(change: Callable[[Array], None]) -> Callable[[Tensors, Request], Tensors]:
    """ggml blocks u8[N, blocks, bytes], changed in place on a copy."""

    def changed(blocks: Array, fmt: QuantFormat) -> Array:
        split = blocks.reshape(len(blocks), -1, fmt.block_bytes).copy()
        change(split)
        return split.reshape(blocks.shape)

    return _tensor("blocks", changed)


def _set(where: Any, value: Callable[[Array], Any]) -> Callable[[Array], None]:
    """Bytes `where` of every block replaced."""

    def change(blocks: Array) -> None:
        blocks[..., where] = value(blocks)

    return change


def _as_half(of: Callable[[Array], Array], start: int) -> Callable[[Array], None]:
    """The f16 at byte `start` of every block replaced."""

    def change(blocks: Array) -> None:
        half = np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)
        blocks[..., start : start + 2] = of(half).astype(np.float16).view(np.uint8)

    return change


def _nibbles_swapped(codes: Array, fmt: QuantFormat) -> Array:
    return codes >> 4 | codes << 4


def _fields_reversed(codes: Array, fmt: QuantFormat) -> Array:
    fields = [codes >> shift & 3 for shift in (0, 2, 4, 6)]
    return fields[3] | fields[2] << 2 | fields[1] << 4 | fields[0] << 6


def _words(change: Callable[[Array], Array]) -> Change:
    """i32 words of eight nibbles as nibbles [..., 8], lowest first."""

    def changed(words: Array, fmt: QuantFormat) -> Array:
        shifts = 4 * np.arange(8, dtype=np.uint32)
        nibbles = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(15)
        moved = change(nibbles.astype(np.int64)) & 15
        joined: Array = (moved.astype(np.uint32) << shifts).sum(axis=-1, dtype=np.uint32).view(np.int32)
        return joined

    return changed


_AWQ = [0, 2, 4, 6, 1, 3, 5, 7]
"""Nibble j of a word holds column _AWQ[j] of eight."""

_in_reading_order = _words(lambda nibbles: nibbles[..., np.argsort(_AWQ)])


def _zeros_plus(step: int) -> Callable[[Tensors, Request], Tensors]:
    return _tensor("qzeros", _words(lambda nibbles: nibbles + step))


def _flushed(codes: Array, fmt: QuantFormat) -> Array:
    return np.where(codes & 0x78, codes, codes & 0x80)


def _without_subnormals(codes: Array, fmt: QuantFormat) -> Array:
    """Exponent 0 as any other: 2^-7 (1 + f / 8) for f / 8 2^-6, as near as there is a code."""
    return np.where(codes & 0x78, codes, codes & 0x80 | 8 + (codes & 7) >> 1)


def _e2m1(change: Callable[[Array], Array]) -> Callable[[Tensors, Request], Tensors]:
    """The codes of blocks of mxfp4, u8[..., 32] in the order of their columns, replaced."""

    def changed(blocks: Array) -> None:
        packed = blocks[..., 1:]
        codes = change(np.concatenate((packed & 15, packed >> 4), axis=-1))
        blocks[..., 1:] = codes[..., :16] | codes[..., 16:] << 4

    return _blocks(changed)


def _in_a_row(blocks: Array) -> Array:
    """q5_K's fifth bits u8[..., 32] such that column j gets bit j of all in a row, not bit j // 32 of byte j % 32."""
    bits = np.unpackbits(blocks[..., 16:48], axis=-1, bitorder="little")
    of_bytes = bits.reshape(*bits.shape[:-1], 8, 32).swapaxes(-1, -2)
    return np.packbits(of_bytes, axis=-1, bitorder="little")[..., 0]


def _column_by_column(scale: Array, fmt: QuantFormat) -> Array:
    return scale.T.reshape(scale.shape)


def _of_whole_blocks(scale: Array, fmt: QuantFormat) -> Array:
    return scale[np.minimum(np.arange(len(scale)), max(len(scale) - 2, 0))]


def _grouped_by_128(scale: Array, fmt: QuantFormat) -> Array:
    group = np.arange(scale.shape[1]) * fmt.block_k // 128
    return scale[:, np.minimum(group, scale.shape[1] - 1)]


def _in_bf16(values: Array, fmt: QuantFormat) -> Array:
    return round_to(values, "bf16")


def _cut_to_bf16(values: Array, fmt: QuantFormat) -> Array:
    bits: Array = np.asarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def _in_f8(values: Array, fmt: QuantFormat) -> Array:
    """Four bits of a significand, the exponents of f32."""
    significand, exponent = np.frexp(np.asarray(values, np.float32))
    rounded: Array = np.ldexp(np.rint(significand * 16) / 16, exponent)
    return rounded


def _cleared(values: Array, fmt: QuantFormat) -> Array:
    values[0] = 0
    return values


def _fault(name: str, wrong: str, tensors: Any, where: Any, op: str = "matmul") -> Fault:
    telling = tuple(f"w={start}" for start in where.starts) if isinstance(where, _Of) else ()
    if where is _with_permission:
        telling = ("scl=bf16",)
    name = f"{op}: {name}"
    return Fault(op, name=name, category="quantization", wrong=wrong, tensors=tensors, where=where, telling=telling)


def _kept_by_shape(session: Any, request: Request, tensors: Tensors) -> Any:
    """The first weight of a format and shape stands for all that follow."""
    spec: Any = request.spec
    prepared = session.right.prepare_weight(request, tensors)
    return session.state.setdefault((spec.weight_format, spec.n, spec.k), prepared)


def _cached(op: str) -> Fault:
    wrong = "prepared weights are cached by format and shape"
    name = f"{op}: another weight of the same shape"
    return Fault(
        op,
        name=name,
        category="quantization",
        wrong=wrong,
        session={"prepare_weight": _kept_by_shape},
        telling=("dequantize",),
    )


_CODES = _with_tensor("codes")
_SCALE = _with_tensor("scale")


def _with_permission(request: Request) -> bool:
    spec: Any = request.spec
    return _SCALE(request) and bool(spec.numerics.scales == "bf16")


FAULTS: Final[tuple[Fault, ...]] = (
    _cached("matmul"),
    _cached("embedding"),
    _cached("grouped_matmul"),
    _fault("nibbles swapped", "the high nibble first", _tensor("codes", _nibbles_swapped), _of("i4_")),
    _fault(
        "nibbles of q4 swapped",
        "the halves of a block exchanged",
        _blocks(_set(slice(-16, None), lambda b: b[..., -16:] >> 4 | b[..., -16:] << 4)),
        _of("q4_0", "q4_1", "mxfp4"),
    ),
    _fault("fields of 2 bits reversed", "the highest bits first", _tensor("codes", _fields_reversed), _of("i2_")),
    _fault(
        "codes as two's complement",
        "8 is not subtracted; the top bit is taken for a sign",
        _tensor("codes", lambda c, f: c ^ 0x88),
        lambda r: _of("i4_")(r) and not r.spec.weight_format.endswith("_z"),
    ),
    _fault(
        "codes clamped at -127",
        "a symmetric range was assumed",
        _tensor("weight", lambda w, f: np.maximum(w, -127)),
        _of("i8_channel"),
    ),
    _fault("f8: FNUZ for FN", "half of each weight", _tensor("scale", lambda s, f: s / 2), _of("f8e4m3fn")),
    _fault("f8: subnormal codes flushed", "zeros", _tensor("weight", _flushed), _of("f8e4m3fn")),
    _fault(
        "f8: subnormal codes as normal ones",
        "exponent 0 is taken for one like others",
        _tensor("weight", _without_subnormals),
        _of("f8e4m3fn"),
    ),
    _fault("f8: signs lost", "bit 7 is masked off", _tensor("weight", lambda w, f: w & 127), _of("f8e4m3fn")),
    _fault(
        "f8: largest codes lost",
        "448 is taken for the NaN next to it, and made 416",
        _tensor("weight", lambda w, f: np.where(w & 127 == 126, w - 1, w)),
        _of("f8e4m3fn"),
    ),
    _fault(
        "f8: divided by the scale",
        "the name weight_scale_inv taken by its word",
        _tensor("scale", lambda s, f: 1 / s),
        _of("f8e4m3fn"),
    ),
    _fault(
        "f8: scales column by column",
        "the grid of blocks is read in the other order",
        _tensor("scale", _column_by_column),
        _of("f8e4m3fn_128x128"),
    ),
    _fault(
        "f8: scales of the block to the left",
        "one index off",
        _tensor("scale", lambda s, f: np.roll(s, 1, axis=1)),
        _of("f8e4m3fn_128x128"),
    ),
    _fault(
        "f8: last rows with the block before",
        "n / 128 blocks, the part of one forgotten",
        _tensor("scale", _of_whole_blocks),
        _of("f8e4m3fn_128x128"),
    ),
    _fault(
        "mxfp4: pairs of neighbours in a byte",
        "the packing of other files for ggml's",
        _e2m1(lambda c: np.stack((c[..., :16], c[..., 16:]), axis=-1).reshape(c.shape)),
        _of("mxfp4"),
    ),
    _fault("mxfp4: signs lost", "three of four bits", _e2m1(lambda c: c & 7), _of("mxfp4")),
    _fault(
        "mxfp4: one half flushed",
        "the subnormal code read as 0",
        _e2m1(lambda c: np.where(c & 7 == 1, c & 8, c)),
        _of("mxfp4"),
    ),
    _fault(
        "mxfp4: codes in equal steps",
        "the two largest codes continue the steps below them: 4 and 6 read as 3 and 4",
        _e2m1(lambda c: np.where(c & 7 > 5, c - 1, c)),
        _of("mxfp4"),
    ),
    _fault(
        "mxfp4: scales halved",
        "ggml's halved scales for codes that are not doubled",
        _blocks(_set(0, lambda b: b[..., 0] - 1)),
        _of("mxfp4"),
    ),
    _fault(
        "mxfp4: scales of the neighbour block",
        "one index off",
        _blocks(_set(0, lambda b: np.roll(b[..., 0], 1, axis=1))),
        _of("mxfp4"),
    ),
    _fault(
        "codes as unsigned",
        "q8_0's bytes are read as u8, less 128",
        _blocks(_set(slice(2, None), lambda b: b[..., 2:] ^ 128)),
        _of("q8_0"),
    ),
    _fault(
        "fifth bit dropped", "q5_0's high bits are never read", _blocks(_set(slice(2, 6), lambda b: 0)), _of("q5_0")
    ),
    _fault(
        "fifth bits in the other order",
        "q5_0's high bits are counted from the top",
        _blocks(_set(slice(2, 6), lambda b: b[..., 5:1:-1])),
        _of("q5_0"),
    ),
    _fault(
        "zero points off by one",
        "GPTQ's convention where there is none",
        _tensor("zero", lambda z, f: np.maximum(z, 1) - 1),
        _with_tensor("zero"),
    ),
    _fault(
        "zero points ignored",
        "half of the range instead",
        _tensor("zero", lambda z, f: np.full_like(z, 1 << (f.bits - 1))),
        _with_tensor("zero"),
    ),
    _fault(
        "zero points of the neighbour group",
        "one index off",
        _tensor("zero", lambda z, f: np.roll(z, 1, axis=1)),
        _with_tensor("zero"),
    ),
    _fault("GPTQ v1 read as v2", "1 is not added to the stored zero points", _zeros_plus(-1), _of("gptq_v1")),
    _fault("GPTQ v2 read as v1", "1 is added to the stored zero points", _zeros_plus(1), _of("gptq_v2")),
    _fault(
        "GPTQ nibbles from the top",
        "the highest nibble of a word first",
        _tensor("qweight", _words(lambda n: n[..., ::-1])),
        _of("gptq"),
    ),
    _fault(
        "group numbers ignored",
        "column k is in group k / group_size",
        _tensor("g_idx", lambda g, f: np.arange(len(g)) // f.block_k),
        _with_tensor("g_idx"),
    ),
    _fault(
        "AWQ in reading order",
        "codes and zero points are not interleaved",
        lambda t, r: _tensor("qzeros", _in_reading_order)(_tensor("qweight", _in_reading_order)(t, r), r),
        _of("awq"),
    ),
    _fault(
        "AWQ zero points in reading order",
        "only codes are put back in order",
        _tensor("qzeros", _in_reading_order),
        _of("awq"),
    ),
    _fault(
        "scales of the neighbour group",
        "one index off",
        _tensor("scale", lambda s, f: np.roll(s, 1, axis=-1)),
        lambda r: _CODES(r) and _SCALE(r),
    ),
    _fault(
        "scales of the neighbour row", "one index off", _tensor("scale", lambda s, f: np.roll(s, 1, axis=0)), _SCALE
    ),
    _fault(
        "GPTQ and AWQ scales of the neighbour group",
        "one index off",
        _tensor("scales", lambda s, f: np.roll(s, 1, axis=0)),
        _of("gptq", "awq"),
    ),
    _fault(
        "groups of 128",
        "the group size is a constant",
        _tensor("scale", _grouped_by_128),
        lambda r: _CODES(r) and get_format(r.spec.weight_format).block_k < 128,
    ),
    _fault(
        "last group dropped",
        "a loop over groups ends early",
        _tensor("scale", lambda s, f: s * (np.arange(s.shape[1]) < s.shape[1] - 1)),
        _CODES,
    ),
    _fault("scales 1 % off", "a constant with two digits", _tensor("scale", lambda s, f: s * 1.01), _SCALE),
    _fault(
        "scales 0.4 % off", "a division by 255 for one by 256", _tensor("scale", lambda s, f: s * 256 / 255), _SCALE
    ),
    _fault("scales in bf16", "stored with 8 bits of precision", _tensor("scale", _in_bf16), _SCALE),
    _fault(
        "scales cut off to bf16",
        "the upper half of the f32, where the request permits the nearest bf16",
        _tensor("scale", _cut_to_bf16),
        _with_permission,
    ),
    _fault(
        "scales in f8 where bf16 is permitted",
        "one type further down",
        _tensor("scale", _in_f8),
        _with_permission,
    ),
    _fault(
        "channel scales in f16",
        "stored in half precision",
        _tensor("scale", lambda s, f: s.astype(np.float16)),
        _of("i8_channel", "f8e4m3fn"),
    ),
    _fault(
        "subnormal scales flushed",
        "f16 scales below 2^-14 become 0",
        _tensor("scale", lambda s, f: np.where(np.abs(s) < 2.0**-14, 0, s)),
        _CODES,
    ),
    _fault(
        "negative scales made positive",
        "scales were taken to be sizes",
        _blocks(_as_half(np.abs, 0)),
        _of("q4_0", "q5_0", "q8_0"),
    ),
    _fault("minimum negated", "q4_1's minimum subtracted", _blocks(_as_half(np.negative, 2)), _of("q4_1")),
    _fault("minimum dropped", "q4_1 read as q4_0 without 8", _blocks(_as_half(np.zeros_like, 2)), _of("q4_1")),
    _fault("q2_K without minimum", "dmin is never read", _blocks(_as_half(np.zeros_like, 82)), _of("q2_K")),
    _fault(
        "q2_K scale and minimum exchanged",
        "the nibbles of a scale byte swapped",
        _blocks(_set(slice(0, 16), lambda b: b[..., :16] >> 4 | b[..., :16] << 4)),
        _of("q2_K"),
    ),
    _fault(
        "q4_K high bits of scales dropped",
        "six-bit scales without their upper two bits",
        _blocks(_set(slice(4, 12), lambda b: b[..., 4:12] & 63)),
        _of("q4_K"),
    ),
    _fault(
        "q4_K scales and minimums exchanged",
        "the lower half of the twelve bytes for the upper",
        _blocks(_set(slice(4, 12), lambda b: np.roll(b[..., 4:12], 4, axis=-1))),
        _of("q4_K"),
    ),
    _fault(
        "q4_K minimum negated", "added where it should be subtracted", _blocks(_as_half(np.negative, 2)), _of("q4_K")
    ),
    _fault("q5_K high bits dropped", "four of five bits", _blocks(_set(slice(16, 48), lambda b: 0)), _of("q5_K")),
    _fault(
        "q5_K high bits in a row",
        "column j has bit j of its block, as in q5_0",
        _blocks(_set(slice(16, 48), _in_a_row)),
        _of("q5_K"),
    ),
    _fault("q5_K without minimum", "dmin is never read", _blocks(_as_half(np.zeros_like, 2)), _of("q5_K")),
    _fault("q5_1 high bits dropped", "four of five bits", _blocks(_set(slice(4, 8), lambda b: 0)), _of("q5_1")),
    _fault("q5_1 minimum subtracted", "as q4_K has it", _blocks(_as_half(np.negative, 2)), _of("q5_1")),
    _fault(
        "iq4_nl halves exchanged",
        "the high nibbles first",
        _blocks(_set(slice(2, 18), lambda b: b[..., 2:18] >> 4 | b[..., 2:18] << 4)),
        _of("iq4_nl"),
    ),
    _fault(
        "iq4_nl index with a sign",
        "nibbles from -8 to 7 into a table from its middle",
        _blocks(_set(slice(2, 18), lambda b: b[..., 2:18] ^ 0x88)),
        _of("iq4_nl"),
    ),
    _fault(
        "iq4_xs high bits of scales dropped",
        "the middle pair for each of the four",
        _blocks(_set(slice(2, 4), lambda b: 0xAA)),
        _of("iq4_xs"),
    ),
    _fault(
        "q3_K high bits the other way round",
        "4 is taken away where the bit is set",
        _blocks(_set(slice(0, 32), lambda b: ~b[..., :32])),
        _of("q3_K"),
    ),
    _fault(
        "q3_K high bits of scales dropped",
        "the middle pair for each of the four",
        _blocks(_set(slice(104, 108), lambda b: 0xAA)),
        _of("q3_K"),
    ),
    _fault(
        "q3_K high bits of scales from the top",
        "the highest pair of a byte first",
        _blocks(_set(slice(104, 108), lambda b: _fields_reversed(b[..., 104:108], get_format("q3_K")))),
        _of("q3_K"),
    ),
    _fault("q6_K high bits dropped", "four of six bits", _blocks(_set(slice(128, 192), lambda b: 0xAA)), _of("q6_K")),
    _fault(
        "q6_K scales as sizes",
        "the sign of its eight-bit scales is lost",
        _blocks(_set(slice(192, 208), lambda b: np.abs(b[..., 192:208].view(np.int8)).view(np.uint8))),
        _of("q6_K"),
    ),
    _fault(
        "prepare writes to the tensors",
        "codes are repacked where they lie",
        _tensor("weight", _cleared),
        _with_tensor("weight"),
    ),
    _fault(
        "last row of a table lost",
        "n - 1 rows are copied",
        _tensor("weight", lambda w, f: np.concatenate([w[:-1], w[:1]])),
        _with_tensor("weight"),
        op="embedding",
    ),
    _fault("nibbles swapped", "the high nibble first", _tensor("codes", _nibbles_swapped), _of("i4_"), op="embedding"),
    _fault(
        "scales of the neighbour row",
        "one index off",
        _tensor("scale", lambda s, f: np.roll(s, 1, axis=0)),
        _SCALE,
        op="embedding",
    ),
    _fault(
        "scales of the neighbour group",
        "one index off",
        _tensor("scale", lambda s, f: np.roll(s, 1, axis=-1)),
        lambda r: _CODES(r) and _SCALE(r),
        op="embedding",
    ),
)
