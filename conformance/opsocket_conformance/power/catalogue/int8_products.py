"""What goes wrong in products with int8 activations whose scales, or the weight's, belong to groups of columns: sums of
integers that are too narrow, scales and sums of a neighbour, corrections forgotten or rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket.quantization import GroupedWeight, get_format
from opsocket_conformance.power.fault import Fault
from opsocket_conformance.power.host import Float64, recomputed, rounded
from opsocket_conformance.power.int8 import REMEMBERED, Step, activation_of, by_pieces, factors


def _int8(request: Request) -> bool:
    return activation_of(request) != "none"


def _quantized_by(activation: str, unit: int = 1) -> Callable[[Request], bool]:
    """Requests with that activation, K a multiple of `unit`."""
    return lambda request: activation_of(request) == activation and request.spec.k % unit == 0  # type: ignore[attr-defined]


def _with(**fields: Any) -> Callable[[Request], bool]:
    """Requests with int8 activations whose weight format has these fields."""

    def where(request: Request) -> bool:
        if not _int8(request):
            return False
        fmt = get_format(request.spec.weight_format)  # type: ignore[attr-defined]
        return all(getattr(fmt, name) == value for name, value in fields.items())

    return where


_WITH_MINIMUMS: Final = _with(zero="float_min")
_SIGNED: Final = _with(zero="none", code="signed")


def _fault(name: str, wrong: str, compute: Step, where: Callable[[Request], bool], *telling: str) -> Fault:
    return Fault(
        "matmul",
        name=f"matmul: int8: {name}",
        category="quantization",
        wrong=wrong,
        run=recomputed(compute),
        where=where,
        telling=("a8", *telling),
        session=REMEMBERED,
    )


def _with_factors(**how: Any) -> Step:
    """The product of x and the weight as they are multiplied, x quantized in another way."""

    def compute(plan: Any, x: Float64, packed: Any, bias: Float64 | None = None) -> Float64:
        given, weight = factors(plan, x, packed, **how)
        y = given @ weight.T
        return np.asarray(y if bias is None else y + bias)

    return compute


def _saturating_pairs(codes: Float64, weight: Float64) -> Float64:
    """Products of two neighbours are summed in int16, as unsigned times signed, and saturate."""
    shifted, even = codes + 128, codes.shape[1] // 2 * 2
    y = np.zeros((len(codes), len(weight)))
    for column in range(0, even, 2):
        pair = shifted[:, column : column + 2] @ weight[:, column : column + 2].T
        y += np.clip(pair, -32768, 32767)
    y += shifted[:, even:] @ weight[:, even:].T
    return np.asarray(y - 128 * weight.sum(axis=1))


def _in_int16(codes: Float64, weight: Float64) -> Float64:
    """The sum of a piece wraps at 16 bits."""
    return np.asarray((codes @ weight.T + 32768) % 65536 - 32768)


def _next(number: int, count: int) -> int:
    return (number + 1) % count


def _middle(weight: GroupedWeight) -> int:
    return 1 << (weight.bits - 1)


def _added_in(dtype: str) -> Step:
    return lambda total, part: rounded(total + part, dtype)


FAULTS: Final[tuple[Fault, ...]] = (
    _fault(
        "pairs saturate at int16",
        "the processor's u8 times i8 without VNNI",
        by_pieces(sums=_saturating_pairs),
        _with(bits=8),
        "q8_0",
    ),
    _fault("sums of a group in int16", "widened after the group", by_pieces(sums=_in_int16), _int8, "extreme"),
    _fault(
        "the offset of signed codes forgotten",
        "stored codes are unsigned, and the sum of x's codes is not taken away",
        by_pieces(offset=_middle),
        _SIGNED,
    ),
    _fault("the next group's weight scale", "one index off", by_pieces(weight_group=_next), _int8),
    _fault("the first group's weight scale for all", "a stride of 0", by_pieces(weight_group=lambda g, n: 0), _int8),
    _fault("the next group's scale of x", "one index off", by_pieces(scale_group=_next), _quantized_by("i8_g32")),
    _fault(
        "minimum times the next group's sum", "one index off", by_pieces(minimum_piece=_next), _WITH_MINIMUMS, "q4_1"
    ),
    _fault(
        "minimum times the first group's sum",
        "a stride of 0",
        by_pieces(minimum_piece=lambda p, n: 0),
        _WITH_MINIMUMS,
        "q4_1",
    ),
    _fault(
        "minimum forgotten", "the format's symmetric twin", by_pieces(correction=lambda s, t: 0 * s * t), _WITH_MINIMUMS
    ),
    _fault(
        "sum of x's codes in f16",
        "kept beside the scale, as ggml's q8_1 has it",
        by_pieces(correction=lambda s, t: rounded(s * t, "f16")),
        _WITH_MINIMUMS,
        "q4_1",
    ),
    _fault(
        "sum of x's codes in bf16",
        "in the activations' type",
        by_pieces(correction=lambda s, t: rounded(s * t, "bf16")),
        _WITH_MINIMUMS,
        "q4_1",
    ),
    _fault(
        "product of the scales in f16",
        "both scales multiplied before they are widened",
        by_pieces(scales=lambda x, w: rounded(x * w, "f16")),
        _int8,
    ),
    _fault(
        "product of the scales in bf16",
        "in the activations' type",
        by_pieces(scales=lambda x, w: rounded(x * w, "bf16")),
        _int8,
    ),
    _fault("groups added in bf16", "the accumulator in the activations' type", by_pieces(add=_added_in("bf16")), _int8),
    _fault("groups added in f16", "half-precision accumulators", by_pieces(add=_added_in("f16")), _int8),
    _fault(
        "a scale for each 32 where the row has one",
        "blocks of x quantized as ggml does",
        _with_factors(width=32),
        _quantized_by("i8_token", 32),
    ),
    _fault("a scale for each 64 columns", "twice the group", _with_factors(width=64), _quantized_by("i8_g32", 64)),
    _fault(
        "columns quantized before they are permuted",
        "groups of 32 are counted in x's own order",
        _with_factors(ordered=False),
        _with(g_idx=True, activation="i8_g32"),
        "act_a8g32",
    ),
)
