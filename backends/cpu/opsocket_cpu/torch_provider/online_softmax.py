"""Softmax of scores that come a tile of keys at a time, and the sum of values under it."""

from __future__ import annotations

import math

import torch

from opsocket.operators import AttentionSpec

_NEVER = -math.inf


class OnlineSoftmax:
    """Running maximum, sum and weighted values of a group, f32 [Hkv, R, G, n] and [Hkv, R, G, n, Dv].

    Method: Milakov and Gimelshein 2018, over tiles as in Dao et al. 2022.
    """

    def __init__(self, shape: tuple[int, int], spec: AttentionSpec) -> None:
        rows = (spec.num_kv_heads, shape[0], spec.group, shape[1])
        self._top = torch.full(rows, _NEVER)
        self._sum = torch.zeros(rows)
        self._out = torch.zeros(*rows, spec.head_dim_vo)

    def add(self, scores: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor | None) -> None:
        """Takes scores [Hkv, R, G, n, S], which it overwrites, values [Hkv * R, S, Dv] and hidden [R, n, S]."""
        if hidden is not None:
            scores.masked_fill_(hidden[:, None], _NEVER)
        top = torch.maximum(self._top, scores.amax(-1))
        base = _finite_base(top)
        weights = scores.sub_(base.unsqueeze(-1)).exp_()
        decay = torch.exp(self._top - base)
        self._sum.mul_(decay).add_(weights.sum(-1))
        self._out.mul_(decay.unsqueeze(-1)).add_(_weighted(weights, values, hidden))
        self._top = top

    def finish(self, sinks: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [Hkv, R, G, n, Dv] and natural-log LSE [Hkv, R, G, n]; sinks f32[Hq] join the denominator only."""
        if sinks is not None:
            sink = sinks.view(self._top.shape[0], 1, self._top.shape[2], 1)
            top = torch.maximum(self._top, sink)
            base = _finite_base(top)
            decay = torch.exp(self._top - base)
            self._sum.mul_(decay).add_(torch.exp(sink - base))
            self._out.mul_(decay.unsqueeze(-1))
            self._top = top
        empty = self._sum == 0
        lse = torch.where(empty, _NEVER, self._top + self._sum.log())
        return self._out.div_(torch.where(empty, 1.0, self._sum).unsqueeze(-1)), lse


def _finite_base(top: torch.Tensor) -> torch.Tensor:
    """What to subtract before exp: -inf - -inf would be NaN where nothing has been seen."""
    return torch.where(top == _NEVER, 0.0, top)


def _weighted(weights: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """weights [Hkv, R, G, n, S] times values [Hkv * R, S, Dv], as [Hkv, R, G, n, Dv].

    A value that is not finite must not reach the queries it is hidden from as 0 * NaN. Looking for one in the product
    costs next to nothing; only then are such values taken out, and given to those alone that see them.
    """
    heads, requests, group, n, count = weights.shape
    product = torch.bmm(weights.view(heads * requests, group * n, count), values)
    product = product.view(heads, requests, group, n, -1)
    if hidden is None or math.isfinite(product.sum()):
        return product
    broken = ~values.isfinite()
    product = torch.bmm(weights.view(heads * requests, group * n, count), values.masked_fill(broken, 0.0))
    product = product.view(heads, requests, group, n, -1)
    values = values.view(heads, requests, 1, 1, count, -1)
    for key in torch.nonzero(broken.any(-1).any(0)).flatten().tolist():
        part = weights[..., key, None] * values[..., key, :].where(~values[..., key, :].isfinite(), 0.0)
        product += part.masked_fill_(hidden[:, None, :, key, None], 0.0)
    return product
