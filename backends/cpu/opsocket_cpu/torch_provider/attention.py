"""Attention of every kind over paged or contiguous keys, in f32, with memory bounded by tiles.

Method: online softmax over tiles of keys (Milakov and Gimelshein 2018; Dao et al. 2022), the query heads of a KV head
folded into the rows of one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opsocket.operators import AttentionBatch, AttentionPlan, Cache, Ragged, Reason, Unsupported
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.torch_provider.grouping import Queries, group_queries
from opsocket_cpu.torch_provider.keys import CachedKeys, ContiguousKeys, KeyRows, TiledKeys, key_rows
from opsocket_cpu.torch_provider.masking import GroupMask
from opsocket_cpu.torch_provider.online_softmax import OnlineSoftmax

_Keys = CachedKeys | TiledKeys | ContiguousKeys

_UNUSED = torch.zeros(())  # what baddbmm adds zero times


@dataclass(frozen=True, eq=False)
class _Group:
    """Queries computed together: their rows of q, what hides keys from them, where the keys lie, and their tiles."""

    rows: slice | torch.Tensor
    mask: GroupMask
    keys: KeyRows
    tiles: tuple[tuple[int, int, bool], ...]


class TorchAttention(AttentionPlan):
    """f32 inside whatever the types outside: q, K and V are widened a tile at a time, the output rounded once.

    `batch.host_exact=False` is Unsupported: tiles are cut from the host's lengths.
    """

    def _update(self, batch: AttentionBatch) -> None:
        if not batch.host_exact:
            reason = Reason("host_exact", "batch.host_exact", False, True)
            raise Unsupported([reason], request=self.request, backend=str(self.session.device))
        spec, cache = self.spec, self.request.cache
        groups = list(group_queries(batch, spec))
        self._groups = [
            _Group(_rows(queries), GroupMask(queries, batch, spec), keys, tuple(queries.tiles(spec)))
            for queries, keys in zip(groups, key_rows(groups, batch, cache), strict=True)
        ]

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
        spec = self.spec
        if out is None:
            out = torch.empty(len(q), spec.num_q_heads, spec.head_dim_vo, dtype=TORCH_DTYPES[spec.out_dtype])
        if spec.want_lse and lse_out is None:
            lse_out = torch.empty(len(q), spec.num_q_heads)
        keys: _Keys
        if not isinstance(kv, Cache):
            keys = ContiguousKeys(kv)
        elif kv.layout.id == "tiles16":
            keys = TiledKeys(kv, self.session.threads)
        else:
            keys = CachedKeys(kv)
        for group in self._groups:
            part, lse = self._attend(q[group.rows], keys, group, sinks, alibi, tree_mask)
            out[group.rows] = part.to(out.dtype)
            if lse_out is not None:
                lse_out[group.rows] = lse
        return out, lse_out

    def _attend(
        self,
        q: torch.Tensor,
        source: _Keys,
        group: _Group,
        sinks: torch.Tensor | None,
        alibi: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [R * n, Hq, Dv] and LSE [R * n, Hq] of one group, its q [R * n, Hq, Dqk]."""
        spec, (requests, n) = self.spec, group.mask.shape
        kv_heads, heads = spec.num_kv_heads, spec.group
        folded = q.view(requests, n, kv_heads, heads, -1).permute(2, 0, 3, 1, 4).float()
        folded = folded.reshape(kv_heads * requests, heads * n, -1)
        state = OnlineSoftmax(group.mask.shape, spec)
        for start, stop, masked in group.tiles:
            k, v = source.tile(group.keys, start, stop)
            scores = torch.baddbmm(_UNUSED, folded, k.mT, beta=0, alpha=spec.scale)
            if spec.softcap is not None:
                scores.div_(spec.softcap).tanh_().mul_(spec.softcap)
            scores = scores.view(kv_heads, requests, heads, n, stop - start)
            if alibi is not None:
                group.mask.add_alibi(scores, alibi, start, stop)
            state.add(scores, v, group.mask.hidden(tree_mask, start, stop) if masked else None)
        out, lse = state.finish(sinks)
        return _unfold(out), _unfold(lse.unsqueeze(-1)).squeeze(-1)


def _rows(queries: Queries) -> slice | torch.Tensor:
    """Rows of q and out of a group: a slice for one request, whose rows are consecutive, else i64[R * n]."""
    first = int(queries.rows[0, 0])
    return slice(first, first + queries.rows.size) if len(queries.rows) == 1 else torch.from_numpy(queries.rows.ravel())


def _unfold(values: torch.Tensor) -> torch.Tensor:
    """[Hkv, R, G, n, D] as rows [R * n, Hq, D]."""
    return values.permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)
