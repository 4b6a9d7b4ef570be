"""Weight formats as data: what a quantized weight is made of, bit for bit, and what it means.

A `QuantFormat` is a hashable record; everything that computes dispatches on its `packing`:

- ``dense``: one array element per weight. ``f32 f16 bf16``; ``i8_channel`` (one scale per row); and
  ``f8e4m3fn_tensor f8e4m3fn_channel f8e4m3fn_128x128`` (one scale for all, per row, per 128 rows by 128 columns).
- ``ggml``: rows of self-contained blocks, scales inside, as llama.cpp has them. ``q4_0 q4_1 q5_0 q5_1
  q8_0``; its K-quants ``q2_K q3_K q4_K q5_K q6_K``; ``iq4_nl iq4_xs``: 16 integers in uneven steps, with one scale per
  32, and with scales of scales as K-quants have them; and ``mxfp4``: 4-bit floats (e2m1) with a power of two (e8m0) per
  32, as OCP Microscaling has them.
- ``nibble_lo``: codes packed along K, lowest bits first. ``i4_g{G} i2_g{G}``, with ``_z`` for a zero point per group.
- ``gptq_v1``, ``gptq_v2``: codes packed along K into i32 words, lowest bits first, stored [K, N]. The two differ by one
  in the zero point: v1 stores ``zero - 1``, v2 stores ``zero``. ``_act``: column k belongs to group ``g_idx[k]``.
- ``awq``: codes packed along N into i32 words in AWQ's interleaved order, stored [K, N].

Every format whose codes are integers (`has_integer_codes`) also comes with int8 activations: ``<base>_a8`` quantizes
each row of x with one scale, ``<base>_a8g32`` each 32 consecutive columns of a row with one of their own. Tensors and
meaning are the base's. Where
``g_idx`` permutes columns, x is permuted first (`GroupedWeight.input_permutation`), and the 32 are counted after that.

A format from elsewhere subclasses `QuantFormat` and overrides `tensor_specs`, `reference` and `group`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError
from opsocket.quantization import grouped, reference, scaled_floats

Array = npt.NDArray[Any]
Specs = dict[str, tuple[str, tuple[int, ...]]]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),  # NumPy has no bfloat16: bit patterns
    "f8e4m3fn": np.dtype(np.uint8),  # the same
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "i32": np.dtype(np.int32),
}

_SUFFIXES: Mapping[str, str] = {"none": "", "i8_token": "_a8", "i8_g32": "_a8g32"}

ACTIVATION_GROUP = 32
"""Columns that share a scale under activation "i8_g32"."""

LEAST_GROUP = 16
"""Group sizes are multiples of this, as are the widths of weights whose last block of columns may be a part of one."""


@dataclass(frozen=True)
class QuantFormat:
    """How one weight [N, K] is stored.

    bits: width of a code. code: ``float``, ``signed`` (the code is the integer, or the integer plus 2^(bits-1)),
    ``unsigned``, ``iq4`` (the code is an index of `grouped.IQ4`, which has the integer), or a small float by its name:
    ``f8e4m3fn``, ``e2m1`` (of which twice the value is an integer).
    block_k: columns that share a scale, 0 for a whole row. block_n: rows that share it, 0 for all. super_block: columns
    that share the scale of the scales (256 for K-quants), else 0. scale_dtype: of the stored scale, "" for float
    formats; ``e8m0`` is 2^(byte - 127), and 255 is NaN. zero: ``none``, ``int`` (w = scale * (code - zero)) or
    ``float_min`` (w = scale * code - minimum). block_bytes: of one ggml block, else 0.

    activation: what x is multiplied as. ``none``: as it is. ``i8_token``: per row, s = amax / 127 in f32, codes
    clamp(round_half_even(x / s), -127, 127), and 0 with s = 0 where amax = 0. ``i8_g32``: the same for each 32
    consecutive columns of a row, after any permutation by g_idx; K is then a multiple of 32.
    """

    id: str
    bits: int
    code: str
    block_k: int
    super_block: int
    scale_dtype: str
    zero: str
    packing: str
    activation: str = "none"
    g_idx: bool = False
    block_bytes: int = 0
    block_n: int = 1

    @property
    def is_float(self) -> bool:
        """Whether the weight is stored as floats, with neither codes nor scales."""
        return self.code == "float"

    @property
    def has_integer_codes(self) -> bool:
        """Whether the weight is integers times scales: what `group` gives, and int8 activations multiply. Of the others
        a float is the weight itself, and `scale_floats` gives an 8-bit float with its scales."""
        return self.code in ("signed", "unsigned", "iq4", "e2m1")

    @property
    def integer_bits(self) -> int:
        """Width of the integers that codes stand for, as `GroupedWeight.bits` counts it: that of a code, but where a
        code is an index that of what it points at."""
        return 8 if self.code == "iq4" else self.bits

    @property
    def base(self) -> QuantFormat:
        """The same stored weight with activations as they are; itself, where it has none other."""
        if self.activation == "none":
            return self
        return replace(self, id=self.id.removesuffix(_SUFFIXES[self.activation]), activation="none")

    def tensor_specs(self, n: int, k: int) -> Specs:
        """Name -> (dtype, shape) of the tensors of a weight [n, k]. ContractError where n or k does not fit."""
        self._check_multiple("n", n, 8 if self.packing in ("gptq_v1", "gptq_v2", "awq") else 1)
        # A block of columns may be a part of one at the end of a row where the blocks are not in the stored elements.
        unit = LEAST_GROUP if self.block_k and self.block_n != 1 else self.super_block or self.block_k or 1
        self._check_multiple("k", k, unit)
        if self.activation == "i8_g32":
            self._check_multiple("k", k, ACTIVATION_GROUP)
        if self.is_float:
            return {"weight": (self.id, (n, k))}
        groups = k // (self.block_k or k)
        match self.packing:
            case "dense" if self.code == "f8e4m3fn":
                down = -(-n // (self.block_n or n))
                shape = (down, -(-k // self.block_k)) if self.block_k else (down,)
                return {"weight": (self.code, (n, k)), "scale": (self.scale_dtype, shape)}
            case "dense":
                return {"weight": ("i8", (n, k)), "scale": (self.scale_dtype, (n,))}
            case "ggml":
                return {"blocks": ("u8", (n, k // (self.super_block or self.block_k) * self.block_bytes))}
            case "nibble_lo":
                specs: Specs = {
                    "codes": ("u8", (n, k * self.bits // 8)),
                    "scale": (self.scale_dtype, (n, groups)),
                }
                if self.zero == "int":
                    specs["zero"] = ("u8", (n, groups))
                return specs
            case "gptq_v1" | "gptq_v2" | "awq":
                words = (k, n // 8) if self.packing == "awq" else (k // 8, n)
                specs = {
                    "qweight": ("i32", words),
                    "qzeros": ("i32", (groups, n // 8)),
                    "scales": (self.scale_dtype, (groups, n)),
                }
                if self.g_idx:
                    specs["g_idx"] = ("i32", (k,))
                return specs
        raise ContractError("format.packing", "a packing that opsocket knows, or a subclass's own tensor_specs", self)

    def validate(self, tensors: Mapping[str, Array], n: int, k: int) -> None:
        """Check names, dtypes, shapes, and the ranges of zero points and group numbers; ContractError names the tensor.

        Scales may be any float: a NaN scale gives NaN weights, here as in every backend.
        """
        specs = self.tensor_specs(n, k)
        for name in tensors:
            if name not in specs:
                raise ContractError(name, f"only the tensors of {self.id}: {', '.join(specs)}", "one more")
        for name, (dtype, shape) in specs.items():
            if name not in tensors:
                raise ContractError(name, f"{dtype}{list(shape)} for {self.id}", "no such tensor")
            tensor = tensors[name]
            if not isinstance(tensor, np.ndarray):
                raise ContractError(name, "a NumPy array", type(tensor).__name__)
            if tensor.dtype != DTYPES[dtype] or tensor.shape != shape:
                raise ContractError(
                    name, f"{dtype}{list(shape)} for {self.id} [{n}, {k}]", f"{tensor.dtype}{list(tensor.shape)}"
                )
        if "zero" in specs and int(tensors["zero"].max()) >> self.bits:
            raise ContractError("zero", f"values in 0..{(1 << self.bits) - 1}", int(tensors["zero"].max()))
        if "g_idx" in specs:
            self._check_g_idx(tensors["g_idx"], k)

    def reference(self, tensors: Mapping[str, Array], n: int, k: int) -> npt.NDArray[np.float64]:
        """The weight's value, float64 [n, k], straight from the format's definition: slow, and the standard."""
        self.validate(tensors, n, k)
        return reference.dequantize(self, tensors, n, k)

    def group(self, tensors: Mapping[str, Array], n: int, k: int) -> grouped.GroupedWeight:
        """The weight in canonical form, from which backends repack. ContractError unless it `has_integer_codes`."""
        self.validate(tensors, n, k)
        return grouped.unpack(self, tensors, n, k)

    def scale_floats(self, tensors: Mapping[str, Array], n: int, k: int) -> scaled_floats.ScaledFloats:
        """The same for a format of 8-bit floats, which integers of 8 bits do not hold. ContractError for any other."""
        self.validate(tensors, n, k)
        return scaled_floats.unpack(self, tensors, n, k)

    def group_size(self, k: int) -> int:
        """Columns that share a scale in the canonical form of a weight [n, k]: a whole row, a block, or as much of one
        as fits into a row a whole number of times."""
        return math.gcd(k, self.block_k) if self.block_k else k

    def _check_multiple(self, argument: str, value: int, unit: int) -> None:
        if value < 1 or value % unit:
            raise ContractError(argument, f"a positive multiple of {unit} for {self.id}", value)

    def _check_g_idx(self, g_idx: Array, k: int) -> None:
        groups = k // self.block_k
        if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
            raise ContractError("g_idx", f"group numbers in 0..{groups - 1}", f"{int(g_idx.min())}..{int(g_idx.max())}")
        members = np.bincount(g_idx, minlength=groups)
        if not np.all(members == self.block_k):
            wrong = int(np.flatnonzero(members != self.block_k)[0])
            raise ContractError("g_idx", f"{self.block_k} columns in every group", f"{members[wrong]} in group {wrong}")


@dataclass(frozen=True, eq=False)
class WeightTensor:
    """One weight [n, k] as read from a file: its format, and the format's tensors by name."""

    format: QuantFormat
    n: int
    k: int
    tensors: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def _float(id: str, bits: int) -> QuantFormat:
    return QuantFormat(id, bits, "float", 0, 0, "", "none", "dense")


def _f8(granularity: str, block_n: int, block_k: int) -> QuantFormat:
    id = f"f8e4m3fn_{granularity}"
    return QuantFormat(id, 8, "f8e4m3fn", block_k, 0, "f32", "none", "dense", block_n=block_n)


def _ggml(id: str, bits: int, block_k: int, block_bytes: int, zero: str = "none", super_block: int = 0) -> QuantFormat:
    code = "unsigned" if zero == "float_min" else "signed"
    return QuantFormat(id, bits, code, block_k, super_block, "f16", zero, "ggml", block_bytes=block_bytes)


_FIXED = (
    _float("f32", 32),
    _float("f16", 16),
    _float("bf16", 16),
    QuantFormat("i8_channel", 8, "signed", 0, 0, "f32", "none", "dense"),
    _f8("tensor", 0, 0),
    _f8("channel", 1, 0),
    _f8("128x128", 128, 128),
    _ggml("q4_0", 4, 32, 18),
    _ggml("q4_1", 4, 32, 20, "float_min"),
    _ggml("q5_0", 5, 32, 22),
    _ggml("q5_1", 5, 32, 24, "float_min"),
    _ggml("q8_0", 8, 32, 34),
    _ggml("q2_K", 2, 16, 84, "float_min", 256),
    _ggml("q3_K", 3, 16, 110, "none", 256),
    _ggml("q4_K", 4, 32, 144, "float_min", 256),
    _ggml("q5_K", 5, 32, 176, "float_min", 256),
    _ggml("q6_K", 6, 16, 210, "none", 256),
    QuantFormat("iq4_nl", 4, "iq4", 32, 0, "f16", "none", "ggml", block_bytes=18),
    QuantFormat("iq4_xs", 4, "iq4", 32, 256, "f16", "none", "ggml", block_bytes=136),
    QuantFormat("mxfp4", 4, "e2m1", 32, 0, "e8m0", "none", "ggml", block_bytes=17),
)

_PARAMETRIC = re.compile(
    r"i(?P<bits>[24])_g(?P<plain>[1-9]\d{0,5})(?P<zero>_z)?"
    r"|(?P<gptq>gptq_v[12])_i4_g(?P<gptq_group>[1-9]\d{0,5})(?P<act>_act)?"
    r"|awq_i4_g(?P<awq_group>[1-9]\d{0,5})"
)


def _parse(id: str) -> QuantFormat | None:
    match = _PARAMETRIC.fullmatch(id)
    if match is None:
        return None
    group = int(match["plain"] or match["gptq_group"] or match["awq_group"])
    if group % LEAST_GROUP:
        raise ContractError("format", f"a group size that is a multiple of {LEAST_GROUP}", id)
    if match["plain"]:
        code, zero = ("unsigned", "int") if match["zero"] else ("signed", "none")
        return QuantFormat(id, int(match["bits"]), code, group, 0, "f16", zero, "nibble_lo")
    return QuantFormat(
        id, 4, "unsigned", group, 0, "f16", "int", match["gptq"] or "awq", g_idx=match["act"] is not None
    )


@lru_cache(maxsize=1024)
def get_format(id: str) -> QuantFormat:
    """The format of that id; a parametric family takes any group size that is a multiple of 16.

    Raises ContractError with the nearest ids for an id that names no format.
    """
    base_id, activation = _split(id)
    base = next((format for format in _FIXED if format.id == base_id), None) or _parse(base_id)
    if base is None or not (base.has_integer_codes or activation == "none"):
        near = difflib.get_close_matches(id, [format.id for format in FORMATS], n=4, cutoff=0.0)
        raise ContractError("format", f"a known format, the nearest being {', '.join(near)}", repr(id))
    return replace(base, id=id, activation=activation)


def with_activation(id: str, activation: str) -> str:
    """The id of that format with another activation: "none", "i8_token" or "i8_g32".

    Raises ContractError for an id or an activation that does not exist, and for int8 activations of a format without
    integer codes.
    """
    base = get_format(id).base
    if activation not in _SUFFIXES:
        raise ContractError("activation", f"one of {', '.join(_SUFFIXES)}", repr(activation))
    if activation != "none" and not base.has_integer_codes:
        raise ContractError("activation", f"'none': {base.id} has no integers to multiply int8 codes with", activation)
    return base.id + _SUFFIXES[activation]


def without_activation(id: str) -> str:
    """The id of the same stored weight with activations as they are."""
    return with_activation(id, "none")


def _split(id: str) -> tuple[str, str]:
    """The base's id, and the activation that the rest of an id says."""
    for activation, suffix in _SUFFIXES.items():
        if suffix and id.endswith(suffix):
            return id.removesuffix(suffix), activation
    return id, "none"


_PLAIN: tuple[QuantFormat, ...] = _FIXED + tuple(
    get_format(family.format(group))
    for family in (
        "i4_g{}",
        "i4_g{}_z",
        "i2_g{}",
        "i2_g{}_z",
        "gptq_v1_i4_g{}",
        "gptq_v1_i4_g{}_act",
        "gptq_v2_i4_g{}",
        "gptq_v2_i4_g{}_act",
        "awq_i4_g{}",
    )
    for group in (32, 64, 128)
)

FORMATS: tuple[QuantFormat, ...] = _PLAIN + tuple(
    get_format(id)
    for id in (
        "i8_channel_a8",
        "q4_0_a8",
        "q4_0_a8g32",
        "q4_1_a8",
        "q4_1_a8g32",
        "q8_0_a8",
        "q4_K_a8",
        "q6_K_a8g32",
        "mxfp4_a8",
        "mxfp4_a8g32",
        "i4_g64_a8",
        "i4_g64_a8g32",
        "i2_g64_a8",
        "gptq_v1_i4_g64_act_a8",
    )
)
"""Every stored weight there is, the parametric families with group sizes 32, 64 and 128; then some of those with int8
activations, which any of them with integer codes can have."""
