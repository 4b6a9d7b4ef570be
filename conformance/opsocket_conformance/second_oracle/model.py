"""The rest of a decoder as ONNX primitives: norm, rotary embedding, gated activation, residual add, experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import RopeSpec
from opsocket.operators.model import RopeScaling
from opsocket_conformance.second_oracle.answer import U_EXP, Float64, Part, U, near
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Tensor, Writer
from opsocket_conformance.tolerance import growth

Int64 = npt.NDArray[np.int64]


def rms_norm(evaluate: Evaluator, x: Float64, weight: Float64, eps: float) -> tuple[Part, ...]:
    """x f64[..., width], weight f64[width]."""
    (y,) = evaluate(_rms_norm(), x=x, weight=weight, eps=np.float64(eps))
    return (near("y", y, (growth(x.shape[-1]) / 2 + 5) * U * np.abs(y)),)


@cache
def _rms_norm() -> Graph:
    g = Writer()
    x, weight, eps = g.input("x", "f64"), g.input("weight", "f64"), g.input("eps", "f64")
    return g.finish(y=x / g("Sqrt", g("ReduceMean", x * x, [-1], keepdims=1) + eps) * weight)


def silu_mul(evaluate: Evaluator, gate: Float64, up: Float64) -> tuple[Part, ...]:
    """gate, up f64[T, width]."""
    (y,) = evaluate(_silu_mul(), gate=gate, up=up)
    return (near("y", y, (U_EXP + 4 * U) * np.abs(y) + np.abs(gate * up) * 2.0**-1022),)


@cache
def _silu_mul() -> Graph:
    g = Writer()
    gate, up = g.input("gate", "f64"), g.input("up", "f64")
    return g.finish(y=gate / (g("Exp", -gate) + 1.0) * up)


def add(evaluate: Evaluator, a: Float64, b: Float64) -> tuple[Part, ...]:
    """a, b f64[T, width]."""
    (y,) = evaluate(_add(), a=a, b=b)
    return (near("y", y, U * np.abs(y)),)


@cache
def _add() -> Graph:
    g = Writer()
    return g.finish(y=g.input("a", "f64") + g.input("b", "f64"))


def moe_route(evaluate: Evaluator, logits: Float64, top_k: int, renormalize: bool) -> tuple[Part, ...]:
    """logits f64[T, E] -> weights f64[T, top_k] in falling order, experts i64[T, top_k] exactly."""
    weights, experts = evaluate(_moe_route(renormalize), logits=logits, top_k=np.array([top_k]))
    reach = np.abs(logits).max(axis=-1, keepdims=True, initial=0.0)
    relative = U_EXP + (growth(logits.shape[-1]) + 3) * U + 4 * U * reach
    return near("weights", weights, relative * weights), Part("experts", experts)


@cache
def _moe_route(renormalize: bool) -> Graph:
    """The order of the shares is the order of the logits, where nothing is lost to rounding; TopK gives ties in the
    order of their indices."""
    g = Writer()
    logits = g.input("logits", "f64")
    largest = g("ReduceMax", logits, [-1], keepdims=1)
    falling, experts = g.many(
        "TopK", logits, g.input("top_k", "i64"), dtypes=("f64", "i64"), axis=-1, largest=1, sorted=1
    )
    chosen = g("Exp", falling - largest)
    among = chosen if renormalize else g("Exp", logits - largest)
    return g.finish(weights=chosen / g("ReduceSum", among, [-1], keepdims=1), experts=experts)


def moe_sort(evaluate: Evaluator, experts: Int64, num_experts: int) -> tuple[Part, ...]:
    """experts i64[T, top_k] -> rows i64[T * top_k], expert_offsets i64[E + 1], slots i64[T, top_k], all of them
    exactly."""
    names = np.arange(num_experts + 1)
    rows, offsets, slots = evaluate(_moe_sort(), experts=experts, names=names, top_k=np.array(experts.shape[1]))
    return Part("rows", rows), Part("expert_offsets", offsets), Part("slots", slots)


@cache
def _moe_sort() -> Graph:
    """TopK of keys that are all different; an offset is how many choices are of experts before."""
    g = Writer()
    experts, names, top_k = (g.input(name, "i64") for name in ("experts", "names", "top_k"))
    flat = experts.reshape(-1)
    count = g("Shape", flat)
    choices = g("Range", 0, g("Squeeze", count), 1)
    _, order = g.many("TopK", flat * count + choices, count, dtypes=("i64", "i64"), axis=-1, largest=0, sorted=1)
    before = (flat.unsqueeze(1) < names.unsqueeze(0)).cast("i64")
    slots = g("Reshape", g("ScatterElements", choices, order, choices, axis=0), g("Shape", experts))
    return g.finish(rows=order // top_k, offsets=g("ReduceSum", before, [0], keepdims=0), slots=slots)


def moe_combine(evaluate: Evaluator, x: Float64, slots: Int64, weights: Float64) -> tuple[Part, ...]:
    """x f64[C, width], slots i64[T, top_k], weights f64[T, top_k] -> y f64[T, width]."""
    y, sizes = evaluate(_moe_combine(), x=x, slots=slots, weights=weights)
    return (near("y", y, (growth(slots.shape[1]) + 1) * U * sizes),)


@cache
def _moe_combine() -> Graph:
    g = Writer()
    x, slots, weights = g.input("x", "f64"), g.input("slots", "i64"), g.input("weights", "f64")
    terms = g("Gather", x, slots, axis=0) * weights.unsqueeze(2)
    return g.finish(y=g("ReduceSum", terms, [1], keepdims=0), sizes=g("ReduceSum", g("Abs", terms), [1], keepdims=0))


def rope(
    evaluate: Evaluator, x: Float64, positions: Int64, spec: RopeSpec, factors: Float64 | None
) -> tuple[Part, ...]:
    """x f64[T, H, D] turned; and what the suite's tolerance goes by, for each element: |a| + |b| of its pair, times the
    attention factor where there is one, and the angle. Channels that are not turned have 0 for both."""
    given = {} if factors is None else {"factors": factors}
    graph = _rope(spec.interleaved, spec.rotary_dim, spec.theta, spec.scaling, factors is not None)
    turned, radius, angle = evaluate(graph, x=x, positions=positions, **given)
    # theta^e with e rounded: e ln(theta) more roundings, of at most ln(theta).
    inner = (8 + abs(math.log(spec.theta))) * U * np.abs(angle)
    return (
        near("turned", turned, (6 * U + inner) * radius),
        near("radius", radius, 2 * U * radius),
        near("angle", angle, inner),
    )


@cache
def _rope(interleaved: bool, rotary_dim: int, theta: float, scaling: RopeScaling | None, factors: bool) -> Graph:
    """Pairs [T, H, 2, P] or [T, H, P, 2] of the first channels; P = rotary_dim / 2."""
    g = Writer()
    x = g.input("x", "f64")
    pair = g.constant(np.arange(rotary_dim // 2), "f64")
    frequency = g("Pow", theta, pair * -2.0 / float(rotary_dim))
    length = 1.0
    if scaling is not None:
        frequency = _SCALED[scaling.kind](pair, frequency, rotary_dim, theta, scaling)
        length = scaling.attention_factor if scaling.kind == "yarn" else 1.0
    if factors:
        frequency = frequency / g.input("factors", "f64")
    angle = g.input("positions", "i64").cast("f64").unsqueeze(1, 2) * frequency
    cos, sin = g("Cos", angle) * length, g("Sin", angle) * length

    axis, shape = (3, (-1, 2)) if interleaved else (2, (2, -1))
    first, rest = x.part(2, 0, rotary_dim), x.part(2, rotary_dim, np.iinfo(np.int64).max)
    pairs = first.reshape(0, 0, *shape)
    a, b = (g("Squeeze", pairs.part(axis, at, at + 1), [axis]) for at in (0, 1))

    def joined(of_first: Tensor, of_second: Tensor, of_rest: Tensor) -> Tensor:
        both = g("Concat", of_first.unsqueeze(axis), of_second.unsqueeze(axis), axis=axis).reshape(0, 0, -1)
        return g("Concat", both, of_rest, axis=2)

    size = (g("Abs", a) + g("Abs", b)) * length
    wide = g("Expand", angle, g("Shape", a, dtype="i64"))
    return g.finish(
        turned=joined(a * cos - b * sin, b * cos + a * sin, rest),
        radius=joined(size, size, rest * 0.0),
        angle=joined(wide, wide, rest * 0.0),
    )


def _linear(pair: Tensor, frequency: Tensor, rotary_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    return frequency / scaling.factor


def _llama3(pair: Tensor, frequency: Tensor, rotary_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """kept: 1 from high_freq_factor turns over the original context on, 0 up to low_freq_factor, linear between."""
    turns = frequency * (scaling.original_max_position / (2 * math.pi))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = _clipped((turns - low) / (high - low))
    return frequency * kept + frequency / scaling.factor * (1.0 - kept)


def _yarn(pair: Tensor, frequency: Tensor, rotary_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Pair numbers, as real numbers, that make beta turns over the original context: theta^(2 i / d) = context /
    (2 pi beta). A ramp between the two, rounded outwards; a ramp of no width is a step."""
    g = pair.writer

    def pair_of(beta: float) -> Tensor:
        turns = g.constant(scaling.original_max_position / (2 * math.pi * beta), "f64")
        return g("Log", turns) / g("Log", g.constant(theta, "f64")) * (rotary_dim / 2)

    first = g("Max", g("Floor", pair_of(scaling.beta_fast)), 0.0)
    last = g("Min", g("Ceil", pair_of(scaling.beta_slow)), float(rotary_dim - 1))
    divided = _clipped((pair - first) / g("Max", last - first, 1e-3))
    return frequency * (1.0 - divided) + frequency / scaling.factor * divided


def _clipped(share: Tensor) -> Tensor:
    return share.writer("Clip", share, 0.0, 1.0)


_SCALED: Final[Mapping[str, Callable[[Tensor, Tensor, int, float, RopeScaling], Tensor]]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
