"""What surrounds the products of a mixture of experts: routing, sorting by expert, weighted sums."""

from __future__ import annotations

import numpy as np

from opsocket.operators import MoECombinePlan, MoERoutePlan, MoESortPlan
from opsocket_template.arrays import result


class MoERoute(MoERoutePlan):
    """A stable sort: ties go to the lower index."""

    def _run(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        spec = self.request.spec
        wide = logits.astype(np.float32)
        order = np.argsort(-wide, axis=-1, kind="stable")
        shares = np.exp(wide - wide.max(-1, keepdims=True))
        experts = order[:, : spec.top_k]
        chosen = np.take_along_axis(shares, experts, -1)
        return chosen / (chosen if spec.renormalize else shares).sum(-1, keepdims=True), experts


class MoESort(MoESortPlan):
    """A stable sort, and its inverse."""

    def _run(self, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spec = self.request.spec
        order = np.argsort(experts, axis=None, kind="stable")
        counts = np.bincount(experts.ravel(), minlength=spec.num_experts)
        slots = np.empty_like(experts)
        slots.flat[order] = np.arange(experts.size)
        return order // spec.top_k, np.append(0, np.cumsum(counts)), slots


class MoECombine(MoECombinePlan):
    """In f32, in the order of the choices."""

    def _run(self, x: np.ndarray, slots: np.ndarray, weights: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        spec = self.request.spec
        total = np.zeros((len(slots), spec.width), np.float32)
        for choice in range(spec.top_k):
            total += weights[:, choice, None] * x[slots[:, choice]].astype(np.float32)
        return result(total, spec.dtype, out)
