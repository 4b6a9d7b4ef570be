"""Rotary embedding: plain, scaled, partial, interleaved, with factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    Request,
    RopeScaling,
    RopeSpec,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES, ActivationCheck
from opsocket_conformance.operators.rounding import check_rounded_once
from opsocket_conformance.tolerance import (
    Bound,
    U,
)
from opsocket_conformance.tolerance import (
    bound as bound_of,
)

_SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 8192, 1.0, 4.0),
    "yarn": RopeScaling("yarn", 16.0, 4096, attention_factor=1.2772588722239782),
    "yarn_other": RopeScaling("yarn", 4.0, 32768, beta_fast=24.0, beta_slow=2.0, attention_factor=0.9),
    "llama3_other": RopeScaling("llama3", 4.0, 2048, 1.5, 6.0),
}


@dataclass(frozen=True)
class Rope(ActivationCheck):
    """heads, d, rotary, theta, interleaved, factors: as in `RopeSpec` (rotary 0: all of d). scaling: "", "linear",
    "llama3" or "yarn", the latter two with other numbers as "llama3_other" and "yarn_other". far: the largest
    position."""

    name: ClassVar[str] = "rope"
    heads: int = 3
    d: int = 64
    rotary: int = 0
    theta: float = 10000.0
    interleaved: bool = False
    scaling: str = ""
    factors: bool = False
    far: int = 300
    strided: bool = False

    def features(self) -> frozenset[str]:
        return super().features() | ({"long"} if self.far > 8192 else set())

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        rotary = self.rotary or self.d
        scaling = _SCALINGS[self.scaling] if self.scaling else None
        spec = RopeSpec(self.heads, self.d, rotary, self.theta, self.interleaved, scaling, self.factors, self.dtype)
        plan = bench.plan(Request(spec))
        x = round_to(rng.standard_normal((self.t, self.heads, self.d)), self.dtype)
        positions = rng.integers(0, self.far + 1, self.t)
        positions[:2] = (0, self.far)
        factors = (1 + 7 * rng.random(rotary // 2)).astype(np.float32) if self.factors else None
        put = bench.put_strided if self.strided else bench.put
        given = bench.out("out", x.shape, self.dtype, strided=self.strided)
        y = bench.run(
            plan,
            put("x", x, self.dtype),
            bench.put("positions", positions),
            None if factors is None else bench.put("factors", factors),
            out=given,
        )
        bench.check_padding("out", given, y, self.t)
        exact = None if factors is None else factors.astype(np.float64)
        want, radius, angle = rope(x.astype(np.float64), positions, spec, exact)
        bound = tolerance(want, radius, angle, self.dtype)
        bench.compare("y", bench.get(y), want, bound)
        check_rounded_once(bench, "y", bench.get(y), want, bound, self.dtype)
        rest = bench.get(y)[..., rotary:]
        bench.same("channels at or past rotary_dim", rest, x[..., rotary:].astype(np.float64))


Int64 = npt.NDArray[np.int64]


@judge_only
def rope(x: Float64, positions: Int64, spec: RopeSpec, factors: Float64 | None) -> tuple[Float64, Float64, Float64]:
    """x f64[T, H, D] turned; and, for the tolerance, |a| + |b| and the angle behind every element."""
    half = spec.rotary_dim // 2
    frequency, attention_factor = frequencies(spec)
    if factors is not None:
        frequency = frequency / factors
    angle = (positions[:, None] * frequency)[:, None, :]
    cos, sin = attention_factor * np.cos(angle), attention_factor * np.sin(angle)
    first, second = _pairs(spec, half)
    a, b = x[..., first], x[..., second]
    out, radius, turned = x.copy(), np.zeros_like(x), np.zeros_like(x)
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    for channel in (first, second):
        radius[..., channel] = abs(attention_factor) * (np.abs(a) + np.abs(b))
        turned[..., channel] = np.broadcast_to(angle, a.shape)
    return out, radius, turned


def _pairs(spec: RopeSpec, half: int) -> tuple[Int64, Int64]:
    if spec.interleaved:
        return 2 * np.arange(half), 2 * np.arange(half) + 1
    return np.arange(half), half + np.arange(half)


def frequencies(spec: RopeSpec) -> tuple[Float64, float]:
    """Radians per position of each channel pair f64[rotary_dim / 2], and the factor on cos and sin."""
    base = spec.theta ** (-2.0 * np.arange(spec.rotary_dim // 2) / spec.rotary_dim)
    scaling = spec.scaling
    if scaling is None:
        return base, 1.0
    if scaling.kind == "linear":
        return base / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(base, scaling), 1.0
    return _yarn(base, spec, scaling), scaling.attention_factor


def _llama3(base: Float64, scaling: RopeScaling) -> Float64:
    wavelength = 2 * math.pi / base
    turns = scaling.original_max_position / wavelength
    kept = np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
    return (1 - kept) * base / scaling.factor + kept * base


def _yarn(base: Float64, spec: RopeSpec, scaling: RopeScaling) -> Float64:
    """Channel pairs that make more than beta_fast turns over the original context are kept, those with fewer than
    beta_slow stretched, a linear ramp between the two pair numbers, which are rounded outwards."""

    def pair_with(turns: float) -> float:
        wavelength = scaling.original_max_position / turns
        return spec.rotary_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(spec.theta))

    low = max(math.floor(pair_with(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with(scaling.beta_slow)), spec.rotary_dim - 1)
    stretched = np.clip((np.arange(len(base)) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return base * (1 - stretched) + base / scaling.factor * stretched


def tolerance(ref: Float64, radius: Float64, angle: Float64, dtype: str) -> Bound:
    """Two products and a sum in f32, cos and sin within 2 units in the last place; angles in f64. radius: |a| + |b|."""
    return bound_of(ref, (6 * U + 2.0**-50 * np.abs(angle)) * radius, dtype)


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for interleaved in (False, True):
            yield Case(Rope(7, dtype, interleaved=interleaved), 0, "smoke")
            for scaling in ("linear", "llama3", "yarn"):
                yield Case(Rope(11, dtype, 5, 128, theta=500000.0, interleaved=interleaved, scaling=scaling, far=8000))
            for scaling in ("linear", "llama3_other", "yarn_other"):
                yield Case(Rope(5, dtype, 2, 80, 64, interleaved=interleaved, scaling=scaling, far=70000))
            yield Case(Rope(5, dtype, 3, 128, 64, factors=True, interleaved=interleaved, far=5000))
            yield Case(Rope(67, dtype, 1, 64, interleaved=interleaved, far=40000))
            yield Case(Rope(5, dtype, 2, 128, strided=True, interleaved=interleaved))
            yield Case(Rope(7, dtype, 3, 96, 32, interleaved=interleaved))
            yield Case(Rope(7, dtype, factors=True, interleaved=interleaved))
            yield Case(Rope(7, dtype, 2, 80, theta=1e6, interleaved=interleaved, far=131071))
            yield Case(Rope(7, dtype, strided=True, interleaved=interleaved))
        yield Case(Rope(7, dtype, far=1048575))
        yield Case(Rope(7, dtype, 1, 2))
        yield Case(Rope(3, dtype, 2, 64, 2))
