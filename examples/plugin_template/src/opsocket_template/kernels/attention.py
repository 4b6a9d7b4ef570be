"""Attention of every kind, a tile of queries at a time, in f32 whatever the types outside."""

from __future__ import annotations

import numpy as np

from opsocket.operators import AttentionBatch, AttentionPlan, Cache, Ragged, Reason, Unsupported
from opsocket_template.arrays import dtype_of
from opsocket_template.kernels.codes import load
from opsocket_template.kernels.masks import Tile, tiles


class Attention(AttentionPlan):
    """All the keys of a tile at once: softmax in one piece, with its maximum taken off.

    Scalars of a spec become f32 before they meet an array: a float64 one would widen the whole array.
    """

    def _update(self, batch: AttentionBatch) -> None:
        """What depends on lengths and tables alone, once a step; every layer then runs with it."""
        if not batch.host_exact:
            reason = Reason("host_exact", "batch.host_exact", False, True)
            raise Unsupported([reason], request=self.request, backend=str(self.session.device))
        self._tiles = list(tiles(batch, self.spec, self.request.cache))

    def _run(
        self,
        q: np.ndarray,
        kv: Cache | Ragged,
        sinks: np.ndarray | None,
        alibi: np.ndarray | None,
        tree_mask: np.ndarray | None,
        out: np.ndarray | None,
        lse_out: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        spec = self.spec
        if out is None:
            out = np.empty((len(q), spec.num_q_heads, spec.head_dim_vo), dtype_of(spec.out_dtype))
        if lse_out is None and spec.want_lse:
            lse_out = np.empty((len(q), spec.num_q_heads), np.float32)
        for tile in self._tiles:
            k, v = _keys_and_values(kv, tile.source)
            visible = tile.visible(spec, tree_mask)
            scores = self._scores(q[tile.rows], k, tile, visible, alibi)
            part, lse = _softmax_times(scores, v, visible, sinks)
            with np.errstate(over="ignore"):
                out[tile.rows] = part.transpose(1, 0, 2)
            if lse_out is not None:
                lse_out[tile.rows] = lse.T
        return out, lse_out

    def _scores(
        self, q: np.ndarray, k: np.ndarray, tile: Tile, visible: np.ndarray, alibi: np.ndarray | None
    ) -> np.ndarray:
        """Final logits f32[Hq, n, S], in the pinned order: scale, softcap, ALiBi, mask."""
        spec, n = self.spec, len(q)
        # Query heads h * G to h * G + G - 1 read KV head h.
        grouped = q.astype(np.float32).transpose(1, 0, 2).reshape(spec.num_kv_heads, spec.group, n, spec.head_dim_qk)
        scores = (grouped @ k.transpose(1, 2, 0)[:, None]).reshape(spec.num_q_heads, n, len(k))
        scores *= np.float32(spec.scale)
        if spec.softcap is not None:
            cap = np.float32(spec.softcap)
            scores = np.tanh(scores / cap) * cap
        if alibi is not None:
            scores -= alibi[:, None, None] * np.abs(tile.distance).astype(np.float32)
        return np.where(visible, scores, np.float32(-np.inf))


def _keys_and_values(kv: Cache | Ragged, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32 k [S, Hkv, Dqk] and v [S, Hkv, Dvo]."""
    if isinstance(kv, Cache):
        return load(kv, "k", source), load(kv, "v", source)
    return kv.k[source].astype(np.float32), kv.v[source].astype(np.float32)


def _softmax_times(
    scores: np.ndarray, v: np.ndarray, visible: np.ndarray, sinks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs f32[Hq, n, Dvo] and natural-log LSE f32[Hq, n]. A sink joins the denominator only.

    A query that sees nothing: 0, and -inf or its sink.
    """
    top = scores.max(-1, initial=-np.inf)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None])
    base = np.where(top == -np.inf, np.float32(0), top)
    weights = np.exp(scores - base[..., None])
    total = weights.sum(-1)
    if sinks is not None:
        total += np.exp(sinks[:, None] - base)
    out = _weighted(weights, v, visible) / np.where(total == 0, np.float32(1), total)[..., None]
    with np.errstate(divide="ignore"):
        return out, base + np.log(total)


def _weighted(weights: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """weights f32[Hq, n, S] times v f32[S, Hkv, Dvo], as [Hq, n, Dvo]."""
    (heads, n, count), by_head = weights.shape, v.transpose(1, 0, 2)
    grouped = weights.reshape(len(by_head), heads // len(by_head), n, count)
    if np.isfinite(v).all():
        return (grouped @ by_head[:, None]).reshape(heads, n, v.shape[-1])
    # 0 * NaN is NaN: what a query does not see must not reach it, so each takes its own keys.
    parts = [grouped[:, :, i, seen] @ by_head[:, seen] for i, seen in enumerate(visible)]
    return np.stack(parts, axis=2).reshape(heads, n, v.shape[-1])
