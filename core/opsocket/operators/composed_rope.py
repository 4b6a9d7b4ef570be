"""Rotary position embedding out of torch operations."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from opsocket.operators.model import RopePlan, RopeScaling, RopeSpec


class ComposedRope(RopePlan):
    """Angles, cosines and sines in f64, applied in f32, rounded once."""

    def _setup(self) -> None:
        spec = self._spec
        self._frequency = self.session.upload(frequencies(spec), "f64")
        half = spec.rotary_dim // 2
        self._first = slice(0, spec.rotary_dim, 2) if spec.interleaved else slice(0, half)
        self._second = slice(1, spec.rotary_dim, 2) if spec.interleaved else slice(half, spec.rotary_dim)
        yarn = spec.scaling is not None and spec.scaling.kind == "yarn"
        self._magnitude = spec.scaling.attention_factor if yarn and spec.scaling is not None else 1.0

    @property
    def _spec(self) -> RopeSpec:
        assert isinstance(self.request.spec, RopeSpec)
        return self.request.spec

    def _run(
        self, x: torch.Tensor, positions: torch.Tensor, factors: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        frequency = self._frequency if factors is None else self._frequency / factors
        angle = positions[:, None, None] * frequency
        cos, sin = (f(angle).mul_(self._magnitude).float() for f in (torch.cos, torch.sin))
        a, b = x[..., self._first].float(), x[..., self._second].float()
        turned_a, turned_b = a * cos - b * sin, a * sin + b * cos
        if out is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if out is not x:
            out[..., self._spec.rotary_dim :] = x[..., self._spec.rotary_dim :]
        out[..., self._first] = turned_a
        out[..., self._second] = turned_b
        return out


def frequencies(spec: RopeSpec) -> npt.NDArray[np.float64]:
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


def _llama3_share(base: npt.NDArray[np.float64], scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """How much of each frequency is kept: by the turns it makes over the original context (Llama 3.1)."""
    turns = scaling.original_max_position * base / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return np.clip(share, 0.0, 1.0)


def _yarn_share(spec: RopeSpec, scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """How much of each frequency is kept: a ramp over pair numbers, from those that make beta_fast turns over the
    original context to those that make beta_slow, both rounded outwards (Peng et al. 2023)."""

    def pair_of(turns: float) -> float:
        return spec.rotary_dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / log_theta

    log_theta = 2 * math.log(spec.theta)
    low = max(math.floor(pair_of(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow)), spec.rotary_dim - 1)
    width = high - low if high != low else 1e-3  # a step where the ramp has no width
    return 1.0 - np.clip((np.arange(spec.rotary_dim // 2) - low) / width, 0.0, 1.0)
