"""Rotary position embedding out of torch operations."""

from __future__ import annotations

import torch

from opsocket.operators.model import RopePlan, RopeSpec
from opsocket.operators.rope_frequencies import frequencies, magnitude


class ComposedRope(RopePlan):
    """Angles, cosines and sines in f64, applied in f32, rounded once."""

    def _setup(self) -> None:
        spec = self._spec
        self._frequency = self.session.upload(frequencies(spec), "f64")
        half = spec.rotary_dim // 2
        self._first = slice(0, spec.rotary_dim, 2) if spec.interleaved else slice(0, half)
        self._second = slice(1, spec.rotary_dim, 2) if spec.interleaved else slice(half, spec.rotary_dim)
        self._magnitude = magnitude(spec)

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
