"""Routing of tokens to experts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import MoERoutePlan, MoERouteSpec
from opsocket_triton.functions import exp_exact
from opsocket_triton.launch import launch
from opsocket_triton.model.order import index_of, key_of, order_of, value_of

_TILE = 1024


@triton.jit
def route_rows(
    logits,
    weights,
    experts,
    rows,
    stride,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    WIDE: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """weights f32[T, TOP_K], experts i64[T, TOP_K] of logits[T, EXPERTS], for tokens ROWS * program 0 and on.

    The largest key is taken out TOP_K times: a key is a logit and, among equal ones, the lower index.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    row = row.to(tl.int64)
    column = tl.arange(0, WIDE)
    mask = inside[:, None] & (column < EXPERTS)[None, :]
    value = tl.load(logits + (row * stride)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    order = tl.where((column < EXPERTS)[None, :], order_of(value), -0x80000000)
    key = key_of(order, column[None, :] + tl.zeros_like(order))
    largest = value_of(tl.max(order, 1))
    total = tl.sum(tl.where((column < EXPERTS)[None, :], exp_exact(value - largest[:, None]), 0.0), 1)
    place = tl.arange(0, PLACES)
    weight = tl.zeros([ROWS, PLACES], tl.float32)
    expert = tl.zeros([ROWS, PLACES], tl.int64)
    for k in range(TOP_K):
        best = tl.max(key, 1)
        key = tl.where(key == best[:, None], -0x8000000000000000, key)
        chosen = exp_exact(value_of((best >> 32).to(tl.int32)) - largest)
        weight = tl.where(place[None, :] == k, chosen[:, None], weight)
        expert = tl.where(place[None, :] == k, index_of(best).to(tl.int64)[:, None], expert)
    if RENORMALIZE:
        total = tl.sum(weight, 1)
    weight = tl.math.div_rn(weight, total[:, None])
    out = (row * TOP_K)[:, None] + place[None, :]
    kept = inside[:, None] & (place < TOP_K)[None, :]
    tl.store(weights + out, weight, mask=kept)
    tl.store(experts + out, expert, mask=kept)


class TritonMoERoute(MoERoutePlan):
    """One launch; logits are read once. So little is moved that the launch, and top_k rounds of comparison, are the
    limit."""

    capture_level = "any"

    def _run(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MoERouteSpec)
        rows = logits.shape[0]
        weights = torch.empty(rows, spec.top_k, dtype=torch.float32, device=logits.device)
        experts = torch.empty(rows, spec.top_k, dtype=torch.int64, device=logits.device)
        wide = triton.next_power_of_2(spec.num_experts)
        tile = max(1, _TILE // wide)
        launch(
            route_rows,
            (triton.cdiv(rows, tile),),
            logits=logits,
            weights=weights,
            experts=experts,
            rows=rows,
            stride=logits.stride(0),
            EXPERTS=spec.num_experts,
            TOP_K=spec.top_k,
            RENORMALIZE=spec.renormalize,
            WIDE=wide,
            PLACES=triton.next_power_of_2(spec.top_k),
            ROWS=tile,
        )
        return weights, experts
