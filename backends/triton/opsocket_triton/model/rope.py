"""Rotary position embedding, in all of its variants."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import RopePlan, RopeSpec
from opsocket.operators.rope_frequencies import frequencies, magnitude
from opsocket_triton.launch import launch
from opsocket_triton.model.rows import TILE, like
from opsocket_triton.model.turns import cos_sin, steps_of, steps_per_position, turns_per_position


@triton.jit
def turn_heads(
    x,
    positions,
    frequency,
    factors,
    out,
    tokens,
    heads,
    magnitude,
    x_row,
    out_row,
    HEAD_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    """Tokens of block program 0 and heads of block program 1 of x[T, heads, HEAD_DIM], turned by positions i64[T].

    frequency: i64[ROTARY / 2] as `steps_per_position` has it, or, to be divided by factors f32[ROTARY / 2], turns f64.
    PAIRS, REST: ROTARY / 2 and HEAD_DIM - ROTARY, rounded up to powers of two. out may be x.
    """
    half: tl.constexpr = ROTARY // 2
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, PAIRS)
    steps = tl.load(frequency + pair, mask=pair < half, other=0)
    if factors is not None:
        steps = steps_of(steps / tl.load(factors + pair, mask=pair < half, other=1.0).to(tl.float64))
    position = tl.load(positions + token, mask=token < tokens, other=0)
    cosine, sine = cos_sin(position[:, None] * steps[None, :])
    cosine = (cosine * magnitude)[:, None, :]
    sine = (sine * magnitude)[:, None, :]
    inside = (token < tokens)[:, None, None] & (head < heads)[None, :, None]
    token = token.to(tl.int64)
    x_at = x + (token * x_row)[:, None, None] + (head * HEAD_DIM)[None, :, None]
    out_at = out + (token * out_row)[:, None, None] + (head * HEAD_DIM)[None, :, None]
    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)
        mask = inside & (column < ROTARY)[None, None, :]
        both = tl.load(x_at + column[None, None, :], mask=mask, other=0.0).to(tl.float32)
        a, b = tl.split(both.reshape(TOKENS, HEADS, PAIRS, 2))
        turned = tl.join(a * cosine - b * sine, a * sine + b * cosine).reshape(TOKENS, HEADS, 2 * PAIRS)
        tl.store(out_at + column[None, None, :], turned.to(out.dtype.element_ty), mask=mask)
    else:
        mask = inside & (pair < half)[None, None, :]
        a = tl.load(x_at + pair[None, None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_at + half + pair[None, None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(out_at + pair[None, None, :], (a * cosine - b * sine).to(out.dtype.element_ty), mask=mask)
        tl.store(out_at + half + pair[None, None, :], (a * sine + b * cosine).to(out.dtype.element_ty), mask=mask)
    if REST:
        column = ROTARY + tl.arange(0, REST)
        mask = inside & (column < HEAD_DIM)[None, None, :]
        tl.store(out_at + column[None, None, :], tl.load(x_at + column[None, None, :], mask=mask, other=0.0), mask=mask)


class TritonRope(RopePlan):
    """Angles reduced exactly in integers, cosines and sines once for all heads of a program, applied in f32.

    Each channel is read once and written once; memory is the limit.
    """

    capture_level = "any"

    def _setup(self) -> None:
        spec = self._spec
        exact = frequencies(spec)
        per_position = turns_per_position(exact) if spec.factors else steps_per_position(exact)
        self._frequency = self.session.upload(per_position)
        self._magnitude = magnitude(spec)

    @property
    def _spec(self) -> RopeSpec:
        assert isinstance(self.request.spec, RopeSpec)
        return self.request.spec

    def _run(
        self, x: torch.Tensor, positions: torch.Tensor, factors: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        spec = self._spec
        out = like(x) if out is None else out
        pairs = triton.next_power_of_2(spec.rotary_dim // 2)
        rest = spec.head_dim - spec.rotary_dim
        rest = triton.next_power_of_2(rest) if rest else 0
        widest = max(pairs, rest)  # a tile of what is only copied may be the larger one
        heads = min(triton.next_power_of_2(spec.num_heads), max(1, TILE // widest))
        tokens = max(1, TILE // (widest * heads))
        launch(
            turn_heads,
            (triton.cdiv(x.shape[0], tokens), triton.cdiv(spec.num_heads, heads)),
            x=x,
            positions=positions,
            frequency=self._frequency,
            factors=factors,
            out=out,
            tokens=x.shape[0],
            heads=spec.num_heads,
            magnitude=self._magnitude,
            x_row=x.stride(0),
            out_row=out.stride(0),
            HEAD_DIM=spec.head_dim,
            ROTARY=spec.rotary_dim,
            INTERLEAVED=spec.interleaved,
            TOKENS=tokens,
            HEADS=heads,
            PAIRS=pairs,
            REST=rest,
        )
        return out
