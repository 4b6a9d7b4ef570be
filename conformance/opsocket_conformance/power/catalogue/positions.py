"""What goes wrong in the rotary embedding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import Float64, partly_written, read_as_dense, recomputed, rounded, truncated

Step = Callable[..., Any]


def _same(value: Any, *others: Any) -> Any:
    return value


def _spec(**changes: Any) -> Hook:
    """A request with some fields of its spec changed."""
    return lambda request: replace(request, spec=replace(request.spec, **changes))


def _frequencies(spec: Any) -> Float64:
    """Radians per position, by the definitions; scalings other than linear are the session's own business."""
    base: Float64 = spec.theta ** (-2.0 * np.arange(spec.rotary_dim // 2) / spec.rotary_dim)
    return base


def _halves(rotary: int) -> tuple[slice, slice]:
    return slice(0, rotary // 2), slice(rotary // 2, rotary)


def _neighbours(rotary: int) -> tuple[slice, slice]:
    return slice(0, rotary, 2), slice(1, rotary, 2)


def rope(
    *,
    position: Step = lambda positions: positions.astype(np.float64),
    angle: Step = lambda positions, frequency: positions[:, None] * frequency,
    wave: Step = _same,
    turn: Step = lambda a, b, cos, sin: (a * cos - b * sin, a * sin + b * cos),
    rest: Step = _same,
    factor: Step = lambda frequency, factors: frequency / factors,
    store: Step = _same,
) -> Hook:
    """The right rotation of plain requests in float64, each step of which can be replaced."""

    def compute(plan: Any, x: Float64, positions: Any, factors: Float64 | None = None) -> Float64 | None:
        spec = plan.request.spec
        frequency = _frequencies(spec)
        if factors is not None:
            frequency = factor(frequency, factors)
        theta = angle(position(positions), frequency)[:, None, :]
        cos, sin = wave(np.cos(theta)), wave(np.sin(theta))
        first, second = (_neighbours if spec.interleaved else _halves)(spec.rotary_dim)
        y = x.copy()
        y[..., spec.rotary_dim :] = rest(x[..., spec.rotary_dim :])
        y[..., first], y[..., second] = turn(x[..., first], x[..., second], cos, sin)
        return np.asarray(store(y, spec.dtype))

    return recomputed(compute)


def _unscaled(request: Request) -> bool:
    return getattr(request.spec, "scaling", None) is None


def _scaled(kind: str) -> Callable[[Request], bool]:
    return lambda request: getattr(getattr(request.spec, "scaling", None), "kind", "") == kind


def _rope_fault(name: str, wrong: str, run: Hook | None = None, where: Any = _unscaled, **hooks: Any) -> Fault:
    return Fault("rope", name=f"rope: {name}", category="positions", wrong=wrong, run=run, where=where, **hooks)


def _scaling(**changes: Any) -> Hook:
    """A request whose scaling has some fields changed, by functions of the scaling."""

    def request(request: Request) -> Request:
        spec: Any = request.spec
        changed = {name: change(spec.scaling) for name, change in changes.items()}
        return replace(request, spec=replace(spec, scaling=replace(spec.scaling, **changed)))

    return request


def _over_the_head(request: Request) -> Request:
    spec: Any = request.spec
    theta = spec.theta ** (spec.rotary_dim / spec.head_dim)
    return replace(request, spec=replace(spec, theta=theta))


def _partial(request: Request) -> bool:
    spec: Any = request.spec
    return bool(spec.rotary_dim < spec.head_dim)


def _theta(factor: float) -> Hook:
    return lambda request: replace(request, spec=replace(request.spec, theta=request.spec.theta * factor))


def _always(request: Request) -> bool:
    return True


FAULTS: Final[tuple[Fault, ...]] = (
    _rope_fault("sine negated", "turned the other way", rope(turn=lambda a, b, c, s: (a * c + b * s, b * c - a * s))),
    _rope_fault(
        "sine negated in one half", "b cos - a sin", rope(turn=lambda a, b, c, s: (a * c - b * s, b * c - a * s))
    ),
    _rope_fault(
        "sine and cosine swapped",
        "one table for the other",
        rope(turn=lambda a, b, c, s: (a * s - b * c, a * c + b * s)),
    ),
    _rope_fault(
        "overwritten before it is read",
        "the second half sees the turned first half",
        rope(turn=lambda a, b, c, s: (a * c - b * s, (a * c - b * s) * s + b * c)),
    ),
    _rope_fault(
        "pairs of the other kind",
        "halves where neighbours are asked for, and the other way round",
        request=lambda request: replace(request, spec=replace(request.spec, interleaved=not request.spec.interleaved)),
        where=_always,
    ),
    _rope_fault("theta 1 % off", "a constant in the kernel", request=_theta(1.01), where=_always),
    _rope_fault("theta 0.1 % off", "theta passed through f16", request=_theta(1.001), where=_always),
    _rope_fault("theta fixed at 10000", "a constant in the kernel", request=_spec(theta=10000.0), where=_always),
    _rope_fault("position + 1", "counted from 1", rope(position=lambda p: p + 1.0)),
    _rope_fault(
        "positions from 0", "the row's number instead of its position", rope(position=lambda p: np.arange(len(p)) * 1.0)
    ),
    _rope_fault("positions in bf16", "through the activations' type", rope(position=lambda p: rounded(p, "bf16"))),
    _rope_fault(
        "positions in f16",
        "through f16: wrong beyond 2048, infinite beyond 65504",
        rope(position=lambda p: rounded(p, "f16")),
    ),
    _rope_fault("positions in 16 bits", "int16: wrong beyond 32767", rope(position=lambda p: p.astype(np.int16) * 1.0)),
    _rope_fault("positions clamped at 8191", "a table of 8192 rows", rope(position=lambda p: np.minimum(p, 8191.0))),
    _rope_fault(
        "angles in f32",
        "position times frequency, rounded",
        rope(angle=lambda p, f: rounded(p[:, None] * rounded(f, "f32"), "f32")),
    ),
    _rope_fault(
        "frequencies in bf16",
        "a table in the activations' type",
        rope(angle=lambda p, f: p[:, None] * rounded(f, "bf16")),
    ),
    _rope_fault("cosines in bf16", "a table in the activations' type", rope(wave=lambda w: rounded(w, "bf16"))),
    _rope_fault("cosines in f16", "a table in f16", rope(wave=lambda w: rounded(w, "f16"))),
    _rope_fault("truncating store", "the upper half of the f32", rope(store=truncated)),
    _rope_fault(
        "rest of the head zeroed",
        "channels at or past rotary_dim are not copied",
        rope(rest=np.zeros_like),
        where=_partial,
    ),
    _rope_fault(
        "frequencies over the whole head", "2i / head_dim in the exponent", request=_over_the_head, where=_partial
    ),
    _rope_fault(
        "partial rotary turned fully",
        "rotary_dim is taken to be head_dim",
        request=lambda request: replace(request, spec=replace(request.spec, rotary_dim=request.spec.head_dim)),
        where=lambda request: _partial(request) and not request.spec.factors,
    ),
    _rope_fault("factors multiplied", "frequency * factor", rope(factor=lambda f, factors: f * factors)),
    _rope_fault("factors ignored", "the array is never read", rope(factor=lambda f, factors: f)),
    _rope_fault(
        "linear scaling multiplied",
        "positions times the factor",
        request=_scaling(factor=lambda s: 1 / s.factor),
        where=_scaled("linear"),
    ),
    _rope_fault(
        "llama3 without a ramp",
        "a step at the low frequency",
        request=_scaling(high_freq_factor=lambda s: s.low_freq_factor + 1e-6),
        where=_scaled("llama3"),
    ),
    _rope_fault(
        "llama3 kept as linear",
        "all frequencies divided",
        request=_scaling(kind=lambda s: "linear"),
        where=_scaled("llama3"),
    ),
    _rope_fault(
        "llama3 for 4096",
        "another original context",
        request=_scaling(original_max_position=lambda s: 4096),
        where=_scaled("llama3"),
    ),
    _rope_fault(
        "yarn without its factor",
        "cosines are not stretched",
        request=_scaling(attention_factor=lambda s: 1.0),
        where=_scaled("yarn"),
    ),
    _rope_fault(
        "yarn's factor by the formula",
        "1 + ln(factor) / 10, whatever the request says",
        request=_scaling(attention_factor=lambda s: 1 + 0.1 * math.log(s.factor)),
        where=_scaled("yarn"),
    ),
    _rope_fault(
        "yarn's factor twice",
        "once in the table and once in the kernel",
        request=_scaling(attention_factor=lambda s: s.attention_factor**2),
        where=_scaled("yarn"),
    ),
    _rope_fault(
        "yarn's betas fixed",
        "33 and 1, one pair further",
        request=_scaling(beta_fast=lambda s: 40.0),
        where=_scaled("yarn"),
    ),
    _rope_fault(
        "scaling ignored",
        "plain frequencies",
        request=_spec(scaling=None),
        where=lambda request: request.spec.scaling is not None,
    ),
    _rope_fault(
        "last head not written", "the head loop ends early", partly_written(lambda y: y[:, 1:][:, -1:]), where=_always
    ),
    _rope_fault(
        "strided rows read as dense", "the token stride is taken for heads * head_dim", read_as_dense, where=_always
    ),
)
