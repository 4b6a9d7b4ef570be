"""The angles of a rotary embedding, as every kernel needs them: NumPy alone, once per plan.

A backend computes these on the host when it plans, and uploads them; only the turning is left to its kernel.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import Reason
from opsocket.operators.model import RopeScaling, RopeSpec

Float64 = npt.NDArray[np.float64]


def frequencies(spec: RopeSpec) -> Float64:
    """Radians per position of each channel pair, f64[rotary_dim / 2], after scaling."""
    base = spec.theta ** (-2.0 * np.arange(spec.rotary_dim // 2) / spec.rotary_dim)
    scaling = spec.scaling
    if scaling is None:
        return base
    stretched = base / scaling.factor
    match scaling.kind:
        case "linear":
            return stretched
        case "llama3":
            kept = _llama3_share(base, scaling)
        case "yarn":
            kept = _yarn_share(spec, scaling)
    return kept * base + (1 - kept) * stretched


def magnitude(spec: RopeSpec) -> float:
    """What cosines and sines are multiplied by: YaRN's attention_factor, else 1."""
    scaling = spec.scaling
    return scaling.attention_factor if scaling is not None and scaling.kind == "yarn" else 1.0


def undefined(spec: RopeSpec) -> tuple[Reason, ...]:
    """Reasons for a provider to refuse a scaling whose formula divides by zero; empty where it is defined."""
    scaling = spec.scaling
    reasons = []
    if scaling is not None and scaling.kind == "llama3" and scaling.low_freq_factor == scaling.high_freq_factor:
        got, want = scaling.high_freq_factor, "another number than low_freq_factor"
        reasons.append(Reason("scaling", "scaling.high_freq_factor", got, want))
    if scaling is not None and scaling.kind == "yarn":
        if spec.theta == 1:
            reasons.append(Reason("scaling", "theta", spec.theta, "another number than 1 with yarn"))
        for name in ("beta_fast", "beta_slow"):
            if not getattr(scaling, name) > 0:
                reasons.append(Reason("scaling", f"scaling.{name}", getattr(scaling, name), "a positive number"))
    return tuple(reasons)


def _llama3_share(base: Float64, scaling: RopeScaling) -> Float64:
    """How much of each frequency is kept: by the turns it makes over the original context (Llama 3.1)."""
    turns = scaling.original_max_position * base / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return np.clip(share, 0.0, 1.0)


def _yarn_share(spec: RopeSpec, scaling: RopeScaling) -> Float64:
    """How much of each frequency is kept: a ramp over pair numbers, from those that make beta_fast turns over the
    original context to those that make beta_slow, both rounded outwards (Peng et al. 2023)."""

    def pair_of(turns: float) -> float:
        return spec.rotary_dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / log_theta

    log_theta = 2 * math.log(spec.theta)
    low = max(math.floor(pair_of(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow)), spec.rotary_dim - 1)
    width = high - low if high != low else 1e-3  # a step where the ramp has no width
    return 1.0 - np.clip((np.arange(spec.rotary_dim // 2) - low) / width, 0.0, 1.0)
