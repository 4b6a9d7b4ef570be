"""Attention of every kind over paged or contiguous keys, one sequence after the other, in f32.

Method: the keys that a sequence's queries see are gathered by slot, the query heads of a KV head folded into the rows
of one matrix product, and softmax taken over all of them at once. It is right for every request and fast for none:
`torch_npu_provider` has the operator that is made for this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from opsocket.operators import AttentionBatch, AttentionPlan, AttentionSpec, Cache, Ragged, Reason, Unsupported
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_ascend.torch_provider.cache import Rows, decode, static


@dataclass(frozen=True, eq=False)
class _Sequence:
    """rows: of q and out. keys: where the seen keys are, slots of a cache or rows of contiguous k and v. hidden:
    bool [n, S], None where every query sees every key. distance: f32 [n, S] of positions, for ALiBi. bits: of a tree
    mask, the byte i64 and the bit i32 [n * q_len] of each new token, which are the last q_len keys."""

    rows: slice
    keys: Rows | slice
    hidden: torch.Tensor | None
    distance: torch.Tensor | None
    bits: tuple[torch.Tensor, torch.Tensor] | None


class TorchAttention(AttentionPlan):
    """f32 inside whatever the types outside, the output rounded once. `batch.host_exact=False` is Unsupported."""

    def _update(self, batch: AttentionBatch) -> None:
        if not batch.host_exact:
            reason = Reason("host_exact", "batch.host_exact", False, True)
            raise Unsupported([reason], request=self.request, backend=str(self.session.device))
        starts = np.asarray(batch.q_indptr).tolist()
        # Those without a query are padding.
        here = [at for at in range(len(starts) - 1) if starts[at + 1] > starts[at]]
        self._sequences = [self._sequence(batch, at, starts[at], starts[at + 1]) for at in here]

    def _sequence(self, batch: AttentionBatch, at: int, start: int, stop: int) -> _Sequence:
        spec, kv_len = self.spec, int(batch.kv_lens[at])
        sees = visible(batch, spec, at, kv_len)
        tree = spec.mask == "tree"
        seen = np.flatnonzero(sees.any(0))
        # The new tokens of a tree stay: their mask is on the device.
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
        if tree:
            first, last = min(first, kv_len - (stop - start)), kv_len
        sees = sees[:, first:last]
        distance = None
        if spec.alibi:
            apart = np.abs(query_positions(batch, at)[:, None] - (_of(batch.kv_start, at) + np.arange(first, last)))
            distance = self.session.upload(apart.astype(np.float32))
        hidden = None if sees.all() else self.session.upload((~sees).astype(np.uint8)).bool()
        bits = self._bits(batch, at, stop - start) if tree else None
        return _Sequence(slice(start, stop), self._keys(batch, at, first, last), hidden, distance, bits)

    def _keys(self, batch: AttentionBatch, at: int, first: int, last: int) -> Rows | slice:
        cache = self.request.cache
        if cache is None:
            assert batch.kv_indptr is not None
            row = int(batch.kv_indptr[at])
            return slice(row + first, row + last)
        assert batch.block_table is not None
        tokens = np.arange(first, last)
        blocks = np.asarray(batch.block_table[at], np.int64)[tokens // cache.block_size]
        return Rows(self.session, cache, blocks * cache.block_size + tokens % cache.block_size)

    def _bits(self, batch: AttentionBatch, at: int, q_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert batch.mask_indptr is not None
        bit = np.arange(q_len * q_len)
        bytes_at = int(batch.mask_indptr[at]) + (bit >> 3)
        return self.session.upload(bytes_at.astype(np.int64)), self.session.upload((bit & 7).astype(np.int32))

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
            out = self.session.empty((len(q), spec.num_q_heads, spec.head_dim_vo), spec.out_dtype)
        if spec.want_lse and lse_out is None:
            lse_out = self.session.empty((len(q), spec.num_q_heads), "f32")
        for sequence in self._sequences:
            part, lse = self._attend(q[sequence.rows], kv, sequence, sinks, alibi, tree_mask)
            out[sequence.rows] = part.to(TORCH_DTYPES[spec.out_dtype])
            if lse_out is not None:
                lse_out[sequence.rows] = lse
        return out, lse_out

    def _attend(
        self,
        q: torch.Tensor,
        kv: Cache | Ragged,
        sequence: _Sequence,
        sinks: torch.Tensor | None,
        alibi: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output f32 [n, Hq, Dv] and LSE [n, Hq] of one sequence, its q [n, Hq, Dqk]."""
        spec, n = self.spec, len(q)
        keys, values = self._gather(kv, sequence.keys)
        count = len(keys)
        if count == 0:
            nothing = torch.zeros(n, spec.num_q_heads, spec.head_dim_vo, device=q.device)
            lse = torch.full((n, spec.num_q_heads), -math.inf, device=q.device)
            return nothing, lse if sinks is None else lse.copy_(sinks)
        folded = q.float().view(n, spec.num_kv_heads, spec.group, -1).permute(1, 2, 0, 3)
        folded = folded.reshape(spec.num_kv_heads, spec.group * n, -1)
        scores = torch.bmm(folded, keys.permute(1, 2, 0)) * spec.scale
        if spec.softcap is not None:
            scores = (scores / spec.softcap).tanh() * spec.softcap
        scores = scores.view(spec.num_q_heads, n, count)
        if alibi is not None:
            scores = scores - alibi.view(-1, 1, 1) * sequence.distance
        hidden = self._hidden(sequence, tree_mask, n, count)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        top = scores.amax(-1, keepdim=True)
        if sinks is not None:
            top = torch.maximum(top, sinks.view(-1, 1, 1))
        # -inf less -inf would be NaN where nothing is seen.
        base = torch.where(top == -math.inf, torch.zeros_like(top), top)
        weights = torch.exp(scores - base)
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + torch.exp(sinks.view(-1, 1, 1) - base)
        empty = total == 0
        weighed = weigh(weights.view(spec.num_kv_heads, spec.group * n, count), values.permute(1, 0, 2), hidden)
        out = weighed.view(spec.num_q_heads, n, -1) / torch.where(empty, torch.ones_like(total), total)
        lse = torch.where(empty, torch.full_like(total, -math.inf), base + total.log())
        return out.transpose(0, 1), lse.squeeze(-1).transpose(0, 1)

    def _gather(self, kv: Cache | Ragged, keys: Rows | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """f32 [S, Hkv, D] of keys and values."""
        if isinstance(keys, slice):
            assert not isinstance(kv, Cache)
            return kv.k[keys].float(), kv.v[keys].float()
        assert isinstance(kv, Cache)
        found = [self._decoded(kv, "k", keys)]
        if kv.spec.v is None:
            return found[0], found[0][..., : self.spec.head_dim_vo]
        return found[0], self._decoded(kv, "v", keys)

    @staticmethod
    def _decoded(cache: Cache, name: str, keys: Rows) -> torch.Tensor:
        fmt, scale = (cache.spec.k, cache.k_scale) if name == "k" else (cache.spec.v, cache.v_scale)
        assert fmt is not None
        if not keys.count:
            return cache.planes[name][:0].float().flatten(0, 1)
        stored = cache.planes.get(f"{name}_scale")
        codes = keys.read(cache.planes[name])
        return decode(codes, fmt, None if stored is None else keys.read(stored), static(scale, fmt)).float()

    @staticmethod
    def _hidden(sequence: _Sequence, tree_mask: torch.Tensor | None, n: int, count: int) -> torch.Tensor | None:
        """bool [n, S] where something is hidden."""
        if sequence.bits is None or tree_mask is None:
            return sequence.hidden
        at, bit = sequence.bits
        unseen = ((tree_mask.index_select(0, at).int() >> bit) & 1) == 0
        hidden = torch.zeros(n, count, dtype=torch.bool, device=tree_mask.device)
        hidden[:, count - n :] = unseen.view(n, n)
        return hidden if sequence.hidden is None else hidden | sequence.hidden


def weigh(weights: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """weights [Hkv, G * n, S] times values [Hkv, S, D]: what is hidden adds nothing, though its value be NaN.

    Values that are not finite are left out of the product, and how many of each kind a query sees is counted by
    products of their own: they give NaN or an infinity to those queries alone.
    """
    if hidden is None:
        return torch.bmm(weights, values)
    finite = values.isfinite()
    product = torch.bmm(weights, torch.where(finite, values, torch.zeros_like(values)))
    seen = (~hidden).float().repeat(weights.shape[1] // len(hidden), 1).expand(len(weights), -1, -1)
    for value in (math.inf, -math.inf, math.nan):
        is_it = (values != values) if math.isnan(value) else values == value
        met = torch.bmm(seen, is_it.float()) > 0
        product = torch.where(met, product + value, product)
    return product


def query_positions(batch: AttentionBatch, at: int) -> np.ndarray:
    """i64 [n]: of the queries of one request."""
    start, stop = int(batch.q_indptr[at]), int(batch.q_indptr[at + 1])
    if batch.q_positions is not None:
        return np.asarray(batch.q_positions[start:stop], np.int64)
    if batch.q_start is not None:
        first = int(batch.q_start[at])
    else:
        first = _of(batch.kv_start, at) + int(batch.kv_lens[at]) - (stop - start)
    return first + np.arange(stop - start)


def visible(batch: AttentionBatch, spec: AttentionSpec, at: int, kv_len: int) -> np.ndarray:
    """bool [n, kv_len]: which keys each query of one request sees, the bits of a tree aside."""
    ahead = (_of(batch.kv_start, at) + np.arange(kv_len)) - query_positions(batch, at)[:, None]
    right = spec.window_right
    if spec.mask == "causal":
        right = 0 if right is None else min(right, 0)
    sees = np.ones(ahead.shape, bool)
    if spec.window_left is not None:
        sees &= ahead >= -spec.window_left
    if right is not None:
        sees &= ahead <= right
    return sees


def _of(values: int | np.ndarray, at: int) -> int:
    return values if isinstance(values, int) else int(values[at])
