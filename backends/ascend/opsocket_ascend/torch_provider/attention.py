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

from opsocket.operators import AttentionBatch, AttentionPlan, AttentionSpec, Cache, Ragged, Reason, Session, Unsupported
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_ascend.device_array import DeviceArray
from opsocket_ascend.torch_provider.cache import Rows, SlotArrays, decode, static


@dataclass(frozen=True, eq=False)
class _Sequence:
    """rows: of q and out. keys: where the seen keys are, slots of a cache or rows of contiguous k and v. hidden:
    u8 [n, S], None where every query sees every key. distance: f32 [n, S] of positions, for ALiBi. bits: of a tree
    mask, the byte i64 and the bit i32 [n * q_len] of each new token, which are the last q_len keys."""

    rows: slice
    keys: Rows | slice
    hidden: torch.Tensor | None
    distance: torch.Tensor | None
    bits: tuple[torch.Tensor, torch.Tensor] | None


class _Parts:
    """What sequences need on the device, in one array of a dtype each, at an address that stays."""

    def __init__(self, session: Session) -> None:
        kinds = {"hidden": "u8", "distance": "f32", "byte": "i64", "bit": "i32"}
        self._arrays = {name: DeviceArray(session, dtype) for name, dtype in kinds.items()}

    def write(self, parts: dict[str, list[np.ndarray]]) -> dict[str, list[torch.Tensor]]:
        """The parts of each name, on the device and in their shapes."""
        joined = {name: np.concatenate([part.reshape(-1) for part in some]) for name, some in parts.items() if some}
        found: dict[str, list[torch.Tensor]] = {}
        for name, values in joined.items():
            pieces = self._arrays[name].write(values).split([part.size for part in parts[name]])
            found[name] = [piece.view(part.shape) for piece, part in zip(pieces, parts[name], strict=True)]
        return found


class TorchAttention(AttentionPlan):
    """f32 inside whatever the types outside, the output rounded once. `batch.host_exact=False` is Unsupported."""

    def _setup(self) -> None:
        cache = self.request.cache
        self._parts = _Parts(self.session)
        self._slots = None if cache is None else SlotArrays(self.session, cache)

    def _update(self, batch: AttentionBatch) -> None:
        if not batch.host_exact:
            reason = Reason("host_exact", "batch.host_exact", False, True)
            raise Unsupported([reason], request=self.request, backend=str(self.session.device))
        starts = np.asarray(batch.q_indptr).tolist()
        # Those without a query are padding.
        here = [at for at in range(len(starts) - 1) if starts[at + 1] > starts[at]]
        seen = [self._seen(batch, at) for at in here]
        slots = [self._slots_of(batch, at, first, last) for at, (first, last, _) in zip(here, seen, strict=True)]
        joined = np.concatenate([*slots, np.empty(0, np.int64)])
        parts: dict[str, list[np.ndarray]] = {"hidden": [], "distance": [], "byte": [], "bit": []}
        for at, (first, last, sees) in zip(here, seen, strict=True):
            if not sees.all():
                parts["hidden"].append((~sees).astype(np.uint8))
            if self.spec.alibi:
                keys = _of(batch.kv_start, at) + np.arange(first, last)
                parts["distance"].append(np.abs(query_positions(batch, at)[:, None] - keys).astype(np.float32))
            if self.spec.mask == "tree":
                byte, bit = _bits(batch, at, starts[at + 1] - starts[at])
                parts["byte"].append(byte)
                parts["bit"].append(bit)
        on_device = {name: iter(some) for name, some in self._parts.write(parts).items()}
        rows = None if self._slots is None else self._slots.write(joined)
        self._sequences, begin = [], 0
        for at, (first, last, sees) in zip(here, seen, strict=True):
            keys: Rows | slice
            if rows is not None:
                keys, begin = rows.part(begin, begin + last - first), begin + last - first
            else:
                assert batch.kv_indptr is not None
                keys = slice(int(batch.kv_indptr[at]) + first, int(batch.kv_indptr[at]) + last)
            sequence = _Sequence(
                slice(starts[at], starts[at + 1]),
                keys,
                None if sees.all() else next(on_device["hidden"]),
                next(on_device["distance"]) if self.spec.alibi else None,
                (next(on_device["byte"]), next(on_device["bit"])) if self.spec.mask == "tree" else None,
            )
            self._sequences.append(sequence)

    def _seen(self, batch: AttentionBatch, at: int) -> tuple[int, int, np.ndarray]:
        """First and last of the keys that some query sees, and bool [n, S] which query sees which of them."""
        kv_len, q_len = int(batch.kv_lens[at]), int(batch.q_indptr[at + 1] - batch.q_indptr[at])
        sees = visible(batch, self.spec, at, kv_len)
        seen = np.flatnonzero(sees.any(0))
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
        if self.spec.mask == "tree":
            # The new tokens of a tree stay: their mask is on the device.
            first, last = min(first, kv_len - q_len), kv_len
        return first, last, sees[:, first:last]

    def _slots_of(self, batch: AttentionBatch, at: int, first: int, last: int) -> np.ndarray:
        """i64 [S]: slots of the seen keys in a cache; none without one."""
        cache = self.request.cache
        if cache is None:
            return np.empty(0, np.int64)
        assert batch.block_table is not None
        tokens = np.arange(first, last)
        blocks = np.asarray(batch.block_table[at], np.int64)[tokens // cache.block_size]
        slots: np.ndarray = blocks * cache.block_size + tokens % cache.block_size
        return slots

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
            return keys.codes(cache, name).float()
        stored = cache.planes.get(f"{name}_scale")
        codes = keys.codes(cache, name)
        return decode(codes, fmt, None if stored is None else keys.read(stored), static(scale, fmt)).float()

    @staticmethod
    def _hidden(sequence: _Sequence, tree_mask: torch.Tensor | None, n: int, count: int) -> torch.Tensor | None:
        """bool [n, S] where something is hidden."""
        own = None if sequence.hidden is None else sequence.hidden.bool()
        if sequence.bits is None or tree_mask is None:
            return own
        at, bit = sequence.bits
        unseen = ((tree_mask.index_select(0, at).int() >> bit) & 1) == 0
        hidden = torch.zeros(n, count, dtype=torch.bool, device=tree_mask.device)
        hidden[:, count - n :] = unseen.view(n, n)
        return hidden if own is None else hidden | own


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


def _bits(batch: AttentionBatch, at: int, q_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Byte i64 and bit i32 [q_len * q_len] of a tree mask, of each query and new token of one request."""
    assert batch.mask_indptr is not None
    bit = np.arange(q_len * q_len)
    return (int(batch.mask_indptr[at]) + (bit >> 3)).astype(np.int64), (bit & 7).astype(np.int32)


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
