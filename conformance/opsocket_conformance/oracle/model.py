"""The rest of a decoder, in float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from opsocket.operators import RopeScaling, RopeSpec
from opsocket_conformance.guard import judge_only

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@judge_only
def rms_norm(x: Float64, weight: Float64, eps: float) -> Float64:
    """x f64[..., width], weight f64[width]."""
    y: Float64 = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight
    return y


@judge_only
def silu_mul(gate: Float64, up: Float64) -> Float64:
    """silu(gate) * up, in the form that does not overflow."""
    decay = np.exp(-np.abs(gate))
    sigmoid = np.where(gate >= 0, 1, decay) / (1 + decay)
    y: Float64 = gate * sigmoid * up
    return y


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


@judge_only
def moe_route(logits: Float64, top_k: int, renormalize: bool) -> tuple[Float64, Int64]:
    """weights f64[T, top_k] in falling order, experts i64[T, top_k]; ties to the lower index."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share = weights / weights.sum(axis=-1, keepdims=True)
    experts = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    chosen = np.take_along_axis(share, experts, axis=-1)
    if renormalize:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    return chosen, experts.astype(np.int64)
