"""Rotary position embedding with phases in whole numbers, since an NPU has no f64.

A turn is 2^64: a pair's frequency is the int64 F = frequency / (2 pi) * 2^64, and position * F, which overflows, is the
phase that is left after whole turns. It is exact to position * 2^-65 turns, at any position. Its highest 32 bits become
the angle in f32.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from opsocket.operators import RopePlan, RopeSpec
from opsocket.operators.rope_frequencies import frequencies, magnitude

_TURN_BITS = 64
_HEADROOM_BITS = 2
"""Of a fraction of a turn that is divided by factors: kept free, so that it and its sign fit an int64."""

_FACTOR_BITS = 23
"""Behind the point of a factor: all that an f32 of at least 1 has."""

_RADIANS = 2 * math.pi / 2.0**32


class TorchRope(RopePlan):
    """Applied in f32, rounded once."""

    def _setup(self) -> None:
        spec = self._spec
        turns = frequencies(spec) / (2 * math.pi)
        bits = _TURN_BITS - _HEADROOM_BITS if spec.factors else _TURN_BITS
        whole = [round(math.ldexp(float(turn % 1.0), bits)) % 2**64 for turn in turns]
        self._frequency = self.session.upload(np.array(whole, np.uint64).view(np.int64))
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
        angle = self._angles(positions, factors)
        cos, sin = angle.cos(), angle.sin()
        if self._magnitude != 1:
            cos, sin = cos * self._magnitude, sin * self._magnitude
        a, b = x[..., self._first].float(), x[..., self._second].float()
        turned_a, turned_b = a * cos - b * sin, a * sin + b * cos
        if out is None:
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rest = self._spec.rotary_dim
        if out is not x and rest < x.shape[-1]:
            out[..., rest:] = x[..., rest:]
        out[..., self._first] = turned_a.to(x.dtype)
        out[..., self._second] = turned_b.to(x.dtype)
        return out

    def _angles(self, positions: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        """f32 [T, 1, rotary_dim / 2], less than a turn."""
        frequency = self._frequency if factors is None else self._divided(factors)
        phase = (positions.unsqueeze(-1) * frequency) >> 32
        return (phase.float() * _RADIANS).unsqueeze(1)

    def _divided(self, factors: torch.Tensor) -> torch.Tensor:
        """F / factor: a long division of whole numbers, in two steps of `_FACTOR_BITS`."""
        divisor = (factors * 2.0**_FACTOR_BITS).long()
        high = self._frequency // divisor
        rest = self._frequency - high * divisor
        return ((high << _FACTOR_BITS) + (rest << _FACTOR_BITS) // divisor) << _HEADROOM_BITS
