"""A right product with int8 activations in NumPy, each step of which can be replaced: what faults of it are put into.

Integer sums are exact for each piece of columns that share their scales; all else is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket.quantization import GroupedWeight, get_format
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_conformance.power.fault import Hook
from opsocket_conformance.power.host import Float64

Step = Callable[..., Any]


def quantize(
    x: Float64,
    *,
    size: Step = lambda x: np.abs(x).max(axis=-1, keepdims=True, initial=0.0),
    scale: Step = lambda size: size / np.float32(127),
    to_code: Step = np.rint,
    zero: float = 0.0,
    lowest: float = -127.0,
) -> tuple[Float64, Float64]:
    """codes and scale [M, 1] of rows x by scheme i8_token, each step of which can be replaced."""
    wide = x.astype(np.float32)
    step = np.asarray(scale(size(wide).astype(np.float32)), np.float32)
    quotient = np.where(step == 0, np.float32(zero), wide / step).astype(np.float64)
    codes = np.clip(to_code(quotient), lowest, 127)
    return codes, step.astype(np.float64)


def activation_of(request: Request) -> str:
    return get_format(getattr(request.spec, "weight_format", "f32")).activation


def _prepare_weight(session: Any, request: Request, tensors: Mapping[str, Any]) -> Any:
    """The right session's packed weight; what it was made of is kept beside it."""
    spec: Any = request.spec
    packed = session.right.prepare_weight(request, tensors)
    if activation_of(request) != "none":
        weight = get_format(spec.weight_format).group(tensors, spec.n, spec.k)
        session.state[id(packed)] = packed, weight
    return packed


REMEMBERED: Final[Mapping[str, Hook]] = {"prepare_weight": _prepare_weight}
"""`Fault.session` of faults that need a packed weight's codes, scales and minimums."""


def weight_of(plan: Any, packed: Any) -> GroupedWeight:
    """What a packed weight was made of, under `REMEMBERED`."""
    weight: GroupedWeight = plan.owner.state[id(packed)][1]
    return weight


def factors(
    plan: Any, x: Float64, packed: Any, quantize: Step = quantize, width: int = 0, ordered: bool = True
) -> tuple[Float64, Float64]:
    """x [M, K] and the weight [N, K] as an int8 product multiplies them, dequantized in float64, columns in the
    weight's own order. width: columns that share a scale, where not as the format has it; ordered: x is permuted first.
    """
    weight = weight_of(plan, packed)
    groups = weight.codes.astype(np.float64).reshape(weight.n, -1, weight.group_size)
    w = groups * weight.scale[:, :, None].astype(np.float64)
    if weight.minimum is not None:
        w -= weight.minimum[:, :, None]
    codes, scales = codes_of(plan, x if ordered else _back(weight, x), weight, quantize, width)
    value = codes * scales
    return value if ordered else _in_order(weight, value), w.reshape(weight.n, -1)


def codes_of(
    plan: Any, x: Float64, weight: GroupedWeight, quantize: Step = quantize, width: int = 0
) -> tuple[Float64, Float64]:
    """codes [M, K] and their scales [M, K], columns in the weight's own order."""
    columns = _in_order(weight, x)
    width = width or (ACTIVATION_GROUP if activation_of(plan.request) == "i8_g32" else weight.k)
    codes, scales = quantize(columns.reshape(-1, width))
    return codes.reshape(x.shape), np.broadcast_to(scales, codes.shape).reshape(x.shape)


def _in_order(weight: GroupedWeight, x: Float64) -> Float64:
    return x if weight.input_permutation is None else x[:, weight.input_permutation]


def _back(weight: GroupedWeight, x: Float64) -> Float64:
    """So that `_in_order` gives x."""
    return x if weight.input_permutation is None else x[:, np.argsort(weight.input_permutation)]


def by_pieces(
    *,
    sums: Step = lambda codes, weight: codes @ weight.T,
    offset: Step = lambda weight: 0,
    weight_group: Step = lambda number, count: number,
    scale_group: Step = lambda number, count: number,
    minimum_piece: Step = lambda number, count: number,
    scales: Step = lambda of_x, of_weight: of_x * of_weight,
    correction: Step = lambda of_x, total: of_x * total,
    add: Step = lambda total, part: total + part,
) -> Step:
    """A kernel piece by piece: sum over p of s_x s_w (codes_x . codes_w) - minimum s_x sum(codes_x).

    sums: of codes [M, k] and [N, k]. offset: what stored codes are larger by, and nobody takes away. weight_group,
    scale_group: which group's scale a piece takes. minimum_piece: whose sum of codes meets the minimum. scales,
    correction: how the two scales, and a scale and a sum of codes, are multiplied. add: how pieces are added up.
    """

    def compute(plan: Any, x: Float64, packed: Any, bias: Float64 | None = None) -> Float64:
        weight = weight_of(plan, packed)
        codes, of_x = codes_of(plan, x, weight)
        shared = ACTIVATION_GROUP if activation_of(plan.request) == "i8_g32" else weight.k
        piece = math.gcd(weight.group_size, shared)
        count, y = weight.k // piece, np.zeros((len(x), weight.n))
        stored = weight.codes.astype(np.float64) + offset(weight)
        for p in range(count):
            part = slice(p * piece, (p + 1) * piece)
            g = weight_group(p * piece // weight.group_size, weight.scale.shape[1])
            first = scale_group(p * piece // shared, weight.k // shared) * shared
            both = scales(of_x[:, first : first + 1], weight.scale[:, g].astype(np.float64))
            term = both * sums(codes[:, part], stored[:, part])
            if weight.minimum is not None:
                own = minimum_piece(p, count) * piece
                total = codes[:, own : own + piece].sum(axis=1, keepdims=True)
                term = term - weight.minimum[:, g] * correction(of_x[:, own : own + 1], total)
            y = add(y, term)
        return y if bias is None else y + bias

    return compute
