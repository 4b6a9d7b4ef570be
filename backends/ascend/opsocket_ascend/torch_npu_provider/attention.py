"""Attention by `npu_fused_infer_attention_score`: prefill, chunks, decode and verification in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from opsocket.cache import expand_block_table
from opsocket.operators import AttentionBatch, Cache, Ragged
from opsocket_ascend.torch_npu_provider import strict
from opsocket_ascend.torch_provider.attention import TorchAttention


@dataclass(frozen=True, eq=False)
class _Step:
    """What the call is told of a batch. empty: rows of q that see no key, i64, None where there are none."""

    q_ends: list[int]
    kv_lens: list[int]
    table: torch.Tensor
    empty: torch.Tensor | None


class NpuAttention(TorchAttention):
    """Layout TND: q as it is, lengths as lists on the host, blocks of 128 tokens.

    The operator aligns queries and keys at the end. Keys past the last query's position, which none of them sees, are
    cut off; a batch with queries past the keys, or with positions of its own, is computed as provider torch does.
    """

    def _setup(self) -> None:
        side = strict.MASK_SIDE
        causal = self.spec.mask == "causal"
        self._mask = self.session.upload(np.triu(np.ones((side, side), np.int8), 1)) if causal else None
        self._step: _Step | None = None

    def _update(self, batch: AttentionBatch) -> None:
        lens = self._seen(batch)
        if lens is None:
            super()._update(batch)
            self._step = None
        else:
            self._step = self._told(batch, lens)

    def _seen(self, batch: AttentionBatch) -> np.ndarray | None:
        """i64 [B]: keys of each request up to the last query's position; None where the operator can't be told."""
        lens = np.asarray(batch.kv_lens, np.int64)
        if not batch.host_exact or batch.q_positions is not None:
            return None
        if batch.q_start is None or self.spec.mask == "full":
            return lens
        ends = np.asarray(batch.q_start, np.int64) - batch.kv_start + np.diff(batch.q_indptr)
        return None if np.any(ends > lens) else np.maximum(ends, 0) if np.all(ends >= 0) else None

    def _told(self, batch: AttentionBatch, lens: np.ndarray) -> _Step:
        cache = self.request.cache
        assert cache is not None
        assert batch.block_table is not None
        starts = np.asarray(batch.q_indptr, np.int64)
        here = np.flatnonzero(np.diff(starts))  # without a query: padding
        q_lens, lens = np.diff(starts)[here], lens[here]
        size = strict.BLOCK_MULTIPLE
        used = -(-lens // size)
        table = np.asarray(batch.block_table)[here]
        # What is past a sequence's keys may be any number, which no kernel has to survive.
        blocks = -(-lens // cache.block_size)
        table = np.where(np.arange(table.shape[1]) < blocks[:, None], table, 0)
        table = expand_block_table(table, cache.block_size, size)[:, : max(1, int(used.max(initial=0)))]
        if not table.shape[1]:
            table = np.zeros((len(here), 1), np.int32)
        rows = [
            np.arange(start, start + (n if count == 0 else max(0, n - count if self._mask is not None else 0)))
            for start, n, count in zip(starts[here], q_lens, lens, strict=True)
        ]
        empty = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
        return _Step(
            np.cumsum(q_lens).tolist(),
            lens.tolist(),
            self.session.upload(np.ascontiguousarray(table)),
            self.session.upload(empty) if len(empty) else None,
        )

    def _run(
        self,
        q: torch.Tensor,
        kv: Cache | Ragged,
        sinks: torch.Tensor | None,
        alibi: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        out: torch.Tensor | None,
        lse_out: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._step is None:
            return super()._run(q, kv, sinks, alibi, tree_mask, out, lse_out)
        assert isinstance(kv, Cache)
        spec, step = self.spec, self._step
        if out is None:
            out = self.session.empty((len(q), spec.num_q_heads, spec.head_dim_vo), spec.out_dtype)
        if spec.want_lse and lse_out is None:
            lse_out = self.session.empty((len(q), spec.num_q_heads), "f32")
        count = step.q_ends[-1] if step.q_ends else 0
        if count:
            got, lse = self._fused(q[:count].contiguous(), kv, step)
            if step.empty is not None:
                got.index_fill_(0, step.empty, 0)
            out[:count] = got
            if lse_out is not None:
                logs = lse.view(count, spec.num_q_heads)
                lse_out[:count] = logs if step.empty is None else logs.index_fill_(0, step.empty, -math.inf)
        return out, lse_out

    def _fused(self, q: torch.Tensor, kv: Cache, step: _Step) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self.spec
        pages = {
            name: plane.view(-1, strict.BLOCK_MULTIPLE, *plane.shape[2:])
            for name, plane in kv.planes.items()
            if plane.dim() > 3
        }
        scales = (kv.planes.get("k_scale"), kv.planes.get("v_scale"))
        return strict.fused_infer_attention(
            q,
            pages["k"],
            pages["v"],
            num_heads=spec.num_q_heads,
            num_kv_heads=spec.num_kv_heads,
            scale=spec.scale,
            q_ends=step.q_ends,
            kv_lens=step.kv_lens,
            block_table=step.table,
            mask=self._mask,
            want_lse=spec.want_lse,
            key_scale=scales[0],
            value_scale=scales[1],
        )
