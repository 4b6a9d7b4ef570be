"""An attention kernel in plain NumPy, for any session: it reads the cache by `cache_read`, and shares nothing with the
oracle. Each stage is a method of `Stages`, so that one can be done another right way, or the wrong way, and all else
stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    Array,
    AttentionBatch,
    AttentionPlan,
    Cache,
    CacheReadSpec,
    Plan,
    Ragged,
    Request,
    Session,
    SlotBatch,
)

Floats = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(eq=False)
class Operands:
    """What a call was given, on the host. q [T, Hq, D]; k, v [N, Hkv, D]: of every slot of the cache, or contiguous."""

    q: Floats
    k: Floats
    v: Floats
    sinks: Floats | None
    slopes: Floats | None
    tree: npt.NDArray[np.uint8] | None


@dataclass(eq=False)
class Row:
    """One request: q [Hq, n, D], at positions query [n]; k, v [Hq, m, D] of whole pages, at positions key [m], of which
    the first kv_len belong to the request."""

    number: int
    operands: Operands
    q: Floats
    k: Floats
    v: Floats
    query: Ints
    key: Ints
    kv_len: int

    @property
    def held(self) -> Bools:
        return np.arange(len(self.key)) < self.kv_len


@dataclass(eq=False)
class State:
    """Softmax over some of the keys: the largest logit [Hq, n, 1], the sum of weights, the weighted sum of values."""

    top: Floats
    total: Floats
    acc: Floats


class Stages:
    """Every stage as docs/interface.md has it, in `work` precision, all keys at once; for one call."""

    work: Any = np.float32

    def __init__(self, plan: AttentionPlan) -> None:
        self.plan, self.session, self.request, self.spec = plan, plan.session, plan.request, plan.spec
        self.batch: AttentionBatch = plan.batch

    def run(
        self,
        q: Array,
        kv: Cache | Ragged,
        sinks: Array | None,
        alibi: Array | None,
        tree_mask: Array | None,
        out: Array | None,
        lse_out: Array | None,
    ) -> tuple[Array, Array | None]:
        operands = self.load(q, kv, sinks, alibi, tree_mask)
        count, heads = int(self.batch.q_indptr[-1]), self.spec.num_q_heads
        values = np.zeros((count, heads, self.spec.head_dim_vo), self.work)
        lse = np.full((count, heads), -np.inf, self.work)
        for row in self.rows(operands):
            first = int(self.batch.q_indptr[row.number])
            where = slice(first, first + row.q.shape[1])
            part, part_lse = self.attend(row)
            values[where], lse[where] = part.transpose(1, 0, 2), part_lse[..., 0].T
        return self.store(len(operands.q), values, lse, out, lse_out)

    # ---- from and to the device

    def load(
        self, q: Array, kv: Cache | Ragged, sinks: Array | None, alibi: Array | None, tree_mask: Array | None
    ) -> Operands:
        def host(array: Array) -> Floats:
            return self.session.download(array).astype(self.work)

        def given(array: Array | None) -> Floats | None:
            return None if array is None else host(array)

        k, v = (kv.k, kv.v) if isinstance(kv, Ragged) else self._pool(kv)
        tree = None if tree_mask is None else self.session.download(tree_mask)
        return Operands(self.query(q), host(k), host(v), given(sinks), given(alibi), tree)

    def query(self, q: Array) -> Floats:
        return self.session.download(q).astype(self.work)

    def _pool(self, cache: Cache) -> tuple[Array, Array]:
        """K and V of every slot, whatever the layout and format; V of a latent cache is K's first channels."""
        session, slots = self.session, SlotBatch(np.arange(cache.spec.num_slots))
        observer, session.observer = session.observer, None
        try:
            plan: Any = session.plan(Request(CacheReadSpec("f32"), cache.spec, cache.layout), slots)
            k, v = plan.run(cache)
            return k, k[..., : cache.spec.head_dim_v] if v is None else v
        finally:
            session.observer = observer

    def store(
        self, rows: int, values: Floats, lse: Floats, out: Array | None, lse_out: Array | None
    ) -> tuple[Array, Array | None]:
        spec, session = self.spec, self.session
        if out is None:
            out = session.empty((rows, spec.num_q_heads, spec.head_dim_vo), spec.out_dtype)
        out = session.write(out, values.astype(np.float32))
        if not spec.want_lse:
            return out, None
        if lse_out is None:
            lse_out = session.empty((rows, spec.num_q_heads), "f32")
        return out, session.write(lse_out, lse.astype(np.float32))

    # ---- which keys

    def rows(self, operands: Operands) -> Iterator[Row]:
        """The requests that have queries."""
        batch = self.batch
        for number, kv_len in enumerate(int(n) for n in batch.kv_lens):
            first, last = (int(i) for i in batch.q_indptr[number : number + 2])
            if first == last:
                continue
            k, v = self.gather(operands, number, kv_len)
            heads = self.kv_head(np.arange(self.spec.num_q_heads))
            k, v = k[:, heads].transpose(1, 0, 2), v[:, heads].transpose(1, 0, 2)
            query, key = self.positions(number, last - first, kv_len, k.shape[1])
            q = operands.q[first:last].transpose(1, 0, 2)
            yield Row(number, operands, q, k, v, query, key, kv_len)

    def gather(self, operands: Operands, number: int, kv_len: int) -> tuple[Floats, Floats]:
        """Keys and values of a request, to the end of its last page."""
        rows = self.slots(number, kv_len)
        return operands.k[rows], operands.v[rows]

    def slots(self, number: int, kv_len: int) -> Ints:
        """Where a request's tokens lie."""
        cache = self.request.cache
        if cache is None:
            assert self.batch.kv_indptr is not None
            first, last = (int(i) for i in self.batch.kv_indptr[number : number + 2])
            return np.arange(first, last)
        pages = self.pages(number, -(-kv_len // cache.block_size))
        return (pages[:, None] * cache.block_size + np.arange(cache.block_size)).ravel()

    def pages(self, number: int, count: int) -> Ints:
        assert self.batch.block_table is not None
        return np.asarray(self.batch.block_table[number, :count], np.int64)

    def kv_head(self, head: Ints) -> Ints:
        """The KV head that each query head reads."""
        return head // self.spec.group

    def positions(self, number: int, q_len: int, kv_len: int, length: int) -> tuple[Ints, Ints]:
        batch = self.batch
        start = int(batch.kv_start if isinstance(batch.kv_start, int) else batch.kv_start[number])
        key = start + np.arange(length)
        if batch.q_positions is not None:
            first = int(batch.q_indptr[number])
            return np.asarray(batch.q_positions[first : first + q_len], np.int64), key
        first = start + kv_len - q_len if batch.q_start is None else int(batch.q_start[number])
        return first + np.arange(q_len), key

    def visible(self, row: Row) -> Bools:
        """[n, m]"""
        spec, ahead = self.spec, row.key[None, :] - row.query[:, None]
        seen = np.broadcast_to(row.held, ahead.shape).copy()
        if spec.window_left is not None:
            seen &= ahead >= -spec.window_left
        if spec.window_right is not None:
            seen &= ahead <= spec.window_right
        if spec.mask == "causal":
            seen &= ahead <= 0
        if spec.mask == "tree":
            first = row.kv_len - len(row.query)
            seen[:, first : row.kv_len] &= self.tree_bits(row, len(row.query))
        return seen

    def tree_bits(self, row: Row, count: int) -> Bools:
        """[n, n]: which new tokens see which."""
        assert row.operands.tree is not None
        assert self.batch.mask_indptr is not None
        packed = row.operands.tree[int(self.batch.mask_indptr[row.number]) :]
        bits = np.unpackbits(packed, bitorder="little")[: count * count]
        return bits.reshape(count, count).astype(bool)

    # ---- logits

    def scores(self, row: Row) -> Floats:
        """[Hq, n, m], before the mask."""
        return self.soften(self.scaled(row)) + self.bias(row)

    def scaled(self, row: Row) -> Floats:
        scaled: Floats = self.dot(row) * self.work(self.spec.scale)
        return scaled

    def dot(self, row: Row) -> Floats:
        product: Floats = row.q @ row.k.transpose(0, 2, 1)
        return product

    def soften(self, scores: Floats) -> Floats:
        cap = self.spec.softcap
        return scores if cap is None else np.tanh(scores / self.work(cap)) * self.work(cap)

    def bias(self, row: Row) -> Floats:
        slopes = row.operands.slopes
        if slopes is None:
            return np.zeros((1, 1, 1), self.work)
        bias: Floats = -slopes[:, None, None] * self.distance(row).astype(self.work)
        return bias

    def distance(self, row: Row) -> Floats:
        """[n, m], of keys from queries, in tokens."""
        distance: Floats = np.abs(row.key[None, :] - row.query[:, None])
        return distance

    # ---- softmax and what it weighs

    def attend(self, row: Row) -> tuple[Floats, Floats]:
        """out [Hq, n, Dv] and LSE [Hq, n, 1]."""
        return self.finish(row, self.merge(self.states(row)))

    def states(self, row: Row) -> list[State]:
        """One for each part that the keys are split into."""
        scores, seen = self.scores(row), self.visible(row)
        parts = self.parts(len(row.key)) or [np.arange(0)]
        return [self.part(row, scores, seen, keys, number == 0) for number, keys in enumerate(parts)]

    def parts(self, length: int) -> Sequence[Ints]:
        return [np.arange(length)]

    def part(self, row: Row, scores: Floats, seen: Bools, keys: Ints, first: bool) -> State:
        seen = seen[:, keys]
        logits = np.where(seen, scores[..., keys], -np.inf)
        sink = self.sink(row) if first else None
        top = self.top(logits, scores[..., keys], sink)
        weights = self.exp(logits - top)
        total = weights.sum(axis=-1, keepdims=True)
        if sink is not None:
            total = total + self.exp(sink - top)
        return State(top, total, self.weigh(self.rounded(weights), self.values(row, seen, keys)))

    def sink(self, row: Row) -> Floats | None:
        """[Hq, 1, 1]"""
        return None if row.operands.sinks is None else row.operands.sinks[:, None, None]

    def top(self, logits: Floats, unmasked: Floats, sink: Floats | None) -> Floats:
        top: Floats = logits.max(axis=-1, keepdims=True, initial=-np.inf)
        top = top if sink is None else np.maximum(top, sink)
        return np.where(np.isfinite(top), top, 0).astype(self.work)

    def exp(self, x: Floats) -> Floats:
        result: Floats = np.exp(x)
        return result

    def rounded(self, weights: Floats) -> Floats:
        """The weights as they meet the values."""
        return weights

    def values(self, row: Row, seen: Bools, keys: Ints) -> Floats:
        """A value that no query sees is not read: what lies there may be NaN."""
        read: Bools = np.any(seen, axis=0)
        return np.where(read[:, None], row.v[:, keys], 0)

    def weigh(self, weights: Floats, values: Floats) -> Floats:
        product: Floats = weights @ values
        return product

    def merge(self, states: Sequence[State]) -> State:
        """The states as one, each part scaled to the largest logit of all; a part that saw nothing has total 0."""
        tops = np.stack([np.where(s.total != 0, s.top, -np.inf) for s in states])
        top = tops.max(axis=0)
        top = np.where(np.isfinite(top), top, 0).astype(self.work)
        factors = self.exp(tops - top)
        total = (factors * np.stack([s.total for s in states])).sum(axis=0)
        return State(top, total, (factors * np.stack([s.acc for s in states])).sum(axis=0))

    def finish(self, row: Row, state: State) -> tuple[Floats, Floats]:
        """No visible key: 0, and -inf."""
        some = state.total != 0
        out = np.where(some, state.acc / np.where(some, state.total, 1), 0)
        return out, np.where(some, np.log(state.total) + state.top, -np.inf)


class PlainAttention(AttentionPlan):
    """Core validates, as for any kernel; the rest is done by the stages that it is given."""

    _stages: type[Stages] = Stages

    def _run(
        self,
        q: Array,
        kv: Cache | Ragged,
        sinks: Array | None,
        alibi: Array | None,
        tree_mask: Array | None,
        out: Array | None,
        lse_out: Array | None,
    ) -> tuple[Array, Array | None]:
        with np.errstate(all="ignore"):
            return self._stages(self).run(q, kv, sinks, alibi, tree_mask, out, lse_out)


def plain(stages: type[Stages]) -> Callable[[Session, Request, str], Plan]:
    """A kernel that does these stages."""

    def make(session: Session, request: Request, provider: str) -> Plan:
        plan = PlainAttention(session, request, provider)
        plan._stages = stages
        return plan

    return make
