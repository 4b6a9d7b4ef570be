"""The rest of a decoder: norm, rotary embedding, gated activation, addition, row selection."""

from __future__ import annotations

import numpy as np

from opsocket.operators import AddPlan, RMSNormPlan, RopePlan, SiluMulPlan, TakeRowsPlan
from opsocket.operators.rope_frequencies import frequencies, magnitude
from opsocket_template.arrays import result


class RMSNorm(RMSNormPlan):
    """With a residual, the sum is rounded to the dtype first: that is what is normalized, and what is returned."""

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        residual: np.ndarray | None,
        out: np.ndarray | None,
        residual_out: np.ndarray | None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        spec = self.request.spec
        total = x if residual is None else result(x + residual, spec.dtype, residual_out)
        wide = total.astype(np.float32)
        mean = np.square(wide).mean(-1, keepdims=True)
        y = result(wide / np.sqrt(mean + np.float32(spec.eps)) * weight, spec.dtype, out)
        return y if residual is None else (y, total)


class Rope(RopePlan):
    """Angles in f64, applied in f32."""

    def _setup(self) -> None:
        """Once a plan: what depends on the request alone."""
        self._frequencies, self._magnitude = frequencies(self.request.spec), magnitude(self.request.spec)

    def _run(
        self, x: np.ndarray, positions: np.ndarray, factors: np.ndarray | None, out: np.ndarray | None
    ) -> np.ndarray:
        spec = self.request.spec
        turned = x.astype(np.float32)
        angles = positions[:, None, None] * (self._frequencies if factors is None else self._frequencies / factors)
        cos, sin = ((f(angles) * self._magnitude).astype(np.float32) for f in (np.cos, np.sin))
        if spec.interleaved:
            first, second = slice(0, spec.rotary_dim, 2), slice(1, spec.rotary_dim, 2)
        else:
            first, second = slice(0, spec.rotary_dim // 2), slice(spec.rotary_dim // 2, spec.rotary_dim)
        a, b = turned[..., first].copy(), turned[..., second].copy()
        turned[..., first], turned[..., second] = a * cos - b * sin, a * sin + b * cos
        return result(turned, spec.dtype, out)


class SiluMul(SiluMulPlan):
    def _run(self, gate: np.ndarray, up: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        wide = gate.astype(np.float32)
        with np.errstate(over="ignore"):
            silu = wide / (1 + np.exp(-wide))
        return result(silu * up.astype(np.float32), self.request.spec.dtype, out)


class Add(AddPlan):
    def _run(self, a: np.ndarray, b: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return np.add(a, b, out=out)


class TakeRows(TakeRowsPlan):
    def _run(self, x: np.ndarray, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return result(x[rows], self.request.spec.dtype, out)
