"""What surrounds the products of a mixture of experts, out of torch operations."""

from __future__ import annotations

import torch

from opsocket.operators.composed_model import rounded
from opsocket.operators.experts import (
    MoECombinePlan,
    MoECombineSpec,
    MoERoutePlan,
    MoERouteSpec,
    MoESortPlan,
    MoESortSpec,
)


class ComposedMoERoute(MoERoutePlan):
    """A stable descending sort of the logits, so that ties go to the lower index, and their softmax in that order."""

    def _run(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MoERouteSpec)
        logits, experts = logits.float().sort(dim=-1, descending=True, stable=True)
        weights = torch.softmax(logits, -1)[:, : spec.top_k]
        if spec.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.contiguous(), experts[:, : spec.top_k].contiguous()


class ComposedMoESort(MoESortPlan):
    """A stable sort of the choices' experts, and its inverse. No size depends on a content: a graph can hold it."""

    def _run(self, experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MoESortSpec)
        found, order = experts.flatten().sort(stable=True)
        bounds = torch.arange(spec.num_experts + 1, device=experts.device)
        slots = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=experts.device))
        return order // spec.top_k, torch.searchsorted(found, bounds), slots.view(experts.shape)


class ComposedMoECombine(MoECombinePlan):
    """A gather, a product, and a sum in the order of the choices, in f32, rounded once."""

    def _run(
        self, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None
    ) -> torch.Tensor:
        spec = self.request.spec
        assert isinstance(spec, MoECombineSpec)
        total = x.new_zeros((len(slots), spec.width), dtype=torch.float32)
        for choice in range(spec.top_k):
            total.addcmul_(x.index_select(0, slots[:, choice]).float(), weights[:, choice, None])
        return rounded(total, x.dtype, out)
