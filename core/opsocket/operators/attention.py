"""Attention: prefill, chunked prefill, decode and multi-token verification in one operator, and the merge of its parts.

Pinned semantics (docs/interface.md has them with their reasons):

- Key j of a request sits at position kv_start + j; query i at q_start + i, by default kv_start + kv_len - q_len.
- A query at p sees keys in [p - window_left, p + window_right], both inclusive; causal forces window_right <= 0.
- Query head h reads KV head h // (Hq / Hkv).
- Order: scale; softcap, cap * tanh(s / cap); ALiBi, -slope[h] * |p - j|; mask.
- A sink is a raw logit that joins the denominator only.
- LSE: natural logarithm over the final logits, sink included. No visible key: out 0, LSE = the sink, else -inf.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from opsocket.operators.cache import Cache, check_cache
from opsocket.operators.capture import CaptureLevel
from opsocket.operators.device import Array
from opsocket.operators.dtypes import check_float
from opsocket.operators.errors import ContractError
from opsocket.operators.numerics import DEFAULT_NUMERICS, Numerics
from opsocket.operators.plan import Plan
from opsocket.operators.request import Spec
from opsocket.operators.validate import (
    check_array,
    check_bound,
    check_indptr,
    check_optional,
    host_array,
    host_counts,
    host_ints,
)


@dataclass(frozen=True)
class AttentionSpec(Spec):
    """What one attention layer computes.

    scale: multiplies q.k; no default, since a wrong one is invisible. mask "tree": causal over the history, `tree_mask`
    over the new tokens. window_left, window_right: in tokens, None = unlimited; a model's `sliding_window = w` is
    window_left = w - 1. softcap: None = off. alibi, sinks: whether `run` takes f32[Hq] slopes, sink logits.
    kv_dtype: of contiguous keys and values (a cache states its own). deterministic: the same bits on every run.
    """

    op: ClassVar[str] = "attention"
    uses_cache: ClassVar[str] = "optional"

    num_q_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    scale: float
    mask: Literal["causal", "full", "tree"] = "causal"
    window_left: int | None = None
    window_right: int | None = None
    softcap: float | None = None
    alibi: bool = False
    sinks: bool = False
    q_dtype: str = "f32"
    kv_dtype: str = "f32"
    out_dtype: str = "f32"
    numerics: Numerics = DEFAULT_NUMERICS
    want_lse: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("num_q_heads", "num_kv_heads", "head_dim_qk", "head_dim_vo"):
            if getattr(self, name) < 1:
                raise ContractError(name, "at least 1", getattr(self, name))
        if self.num_q_heads % self.num_kv_heads:
            raise ContractError("num_q_heads", f"a multiple of num_kv_heads={self.num_kv_heads}", self.num_q_heads)
        if not np.isfinite(self.scale):
            raise ContractError("scale", "a finite number", self.scale)
        if self.softcap is not None and not (np.isfinite(self.softcap) and self.softcap > 0):
            raise ContractError("softcap", "a positive finite number, or None", self.softcap)
        if self.mask not in ("causal", "full", "tree"):
            raise ContractError("mask", "one of ['causal', 'full', 'tree']", repr(self.mask))
        if self.window_left is not None and self.window_left < 0:
            raise ContractError("window_left", "at least 0, or None", self.window_left)
        if self.window_right is not None and self.window_right < 0:
            raise ContractError("window_right", "at least 0, or None", self.window_right)
        for name in ("q_dtype", "kv_dtype", "out_dtype"):
            check_float(getattr(self, name), name)

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_q_heads // self.num_kv_heads


@dataclass(frozen=True, eq=False)
class AttentionBatch:
    """The shape of one step, as host arrays; core uploads what a kernel needs on the device.

    q_indptr i32[B+1]: rows of q of each request; rows at or past q_indptr[B] are padding and not written.
    kv_lens i32[B]: keys of each request, this step's tokens included.
    block_table i32[B, W]: blocks of each request, with a cache; entries at or past ceil(kv_len / block_size) are never
    read; entries wholly left of every window may be any valid block.
    kv_indptr i64[B+1]: rows of contiguous k and v of each request, without a cache.
    kv_start int or i32[B]: position of key 0. q_start i32[B]: position of query 0, None = kv_start + kv_len - q_len.
    q_positions i32[T]: position of every query, for trees with a window or ALiBi, where siblings share one.
    mask_indptr i64[B+1]: byte offsets into `tree_mask`.
    host_exact False: the host's lengths are upper bounds and the device's rule; a backend may refuse that.
    """

    q_indptr: np.ndarray
    kv_lens: np.ndarray
    block_table: np.ndarray | None = None
    kv_indptr: np.ndarray | None = None
    kv_start: int | np.ndarray = 0
    q_start: np.ndarray | None = None
    q_positions: np.ndarray | None = None
    mask_indptr: np.ndarray | None = None
    host_exact: bool = True


class Ragged(NamedTuple):
    """Contiguous keys k[Tk, Hkv, Dqk] and values v[Tk, Hkv, Dvo]; the batch's `kv_indptr` says whose rows are whose."""

    k: Array
    v: Array


class AttentionPlan(Plan):
    """run(q[T, Hq, Dqk], kv, sinks f32[Hq]?, alibi f32[Hq]?, tree_mask u8[bytes]?) -> out[T, Hq, Dvo], lse f32[T, Hq]?

    tree_mask: bits, least significant first, row-major, q_len x q_len per request over the new tokens only, each
    request byte-aligned at mask_indptr; the history is visible to every query.
    """

    spec_type = AttentionSpec
    batch_type = AttentionBatch

    @property
    def spec(self) -> AttentionSpec:
        spec = self.request.spec
        assert isinstance(spec, AttentionSpec)
        return spec

    def _validate_batch(self, batch: Any) -> None:
        validate_attention_batch(batch, self)

    def run(
        self,
        q: Array,
        kv: Cache | Ragged,
        sinks: Array | None = None,
        alibi: Array | None = None,
        tree_mask: Array | None = None,
        *,
        out: Array | None = None,
        lse_out: Array | None = None,
    ) -> tuple[Array, Array | None]:
        spec, session = self.spec, self.session
        rows, _, _ = check_array(session, "q", q, spec.q_dtype, (None, spec.num_q_heads, spec.head_dim_qk))
        keys = None
        if self.request.cache is not None:
            check_cache("kv", kv, self.request)
        else:
            keys = self._check_ragged(kv)
        check_optional(session, "sinks", sinks, spec.sinks, "f32", (spec.num_q_heads,), 1)
        check_optional(session, "alibi", alibi, spec.alibi, "f32", (spec.num_q_heads,), 1)
        check_optional(session, "tree_mask", tree_mask, spec.mask == "tree", "u8", (None,), 1)
        if out is not None:
            check_array(session, "out", out, spec.out_dtype, (rows, spec.num_q_heads, spec.head_dim_vo))
        if lse_out is not None:
            check_optional(session, "lse_out", lse_out, spec.want_lse, "f32", (rows, spec.num_q_heads))
        mask_bytes = None if tree_mask is None else session.describe(tree_mask).shape[0]
        outs = {"out": out, "lse_out": lse_out} if spec.want_lse else {"out": out}
        result: tuple[Array, Array | None] = self._call(
            self._run, q, kv, sinks, alibi, tree_mask, out, lse_out, room=(rows, keys, mask_bytes), outs=outs
        )
        return result

    def _check_room(self, batch: Any, *room: Any) -> None:
        rows, keys, mask_bytes = room
        for argument, starts, have, what in (
            ("q", "q_indptr", rows, "rows"),
            ("kv.k", "kv_indptr", keys, "rows"),
            ("tree_mask", "mask_indptr", mask_bytes, "bytes"),
        ):
            if have is not None and have < (need := int(getattr(batch, starts)[-1])):
                raise ContractError(argument, f"at least {starts}[B]={need} {what}", have)

    def _check_level(self, batch: Any, captured: Any, level: CaptureLevel) -> None:
        size, most = len(batch.q_indptr) - 1, len(captured.q_indptr) - 1
        if size > most:
            raise ContractError("q_indptr", f"at most {most} sequences, as captured", size)
        if level == "any":
            return
        q_lens, before = np.diff(batch.q_indptr), np.diff(captured.q_indptr)
        want = 1 if level == "decode" else int(before.max(initial=0))
        if (other := q_lens[(q_lens != 0) & (q_lens != want)]).size:
            raise ContractError(
                "q_indptr", f"{want} or 0 queries of each sequence: captured as {level!r}", int(other[0])
            )

    def _check_ragged(self, kv: Any) -> int:
        spec = self.spec
        if not isinstance(kv, Ragged):
            raise ContractError("kv", "Ragged(k, v): the request has no cache", type(kv).__name__)
        shape = (None, spec.num_kv_heads, spec.head_dim_qk)
        rows = check_array(self.session, "kv.k", kv.k, spec.kv_dtype, shape)[0]
        check_array(self.session, "kv.v", kv.v, spec.kv_dtype, (rows, spec.num_kv_heads, spec.head_dim_vo))
        return rows

    @abstractmethod
    def _run(
        self,
        q: Array,
        kv: Cache | Ragged,
        sinks: Array | None,
        alibi: Array | None,
        tree_mask: Array | None,
        out: Array | None,
        lse_out: Array | None,
    ) -> tuple[Array, Array | None]: ...


def validate_attention_batch(batch: AttentionBatch, plan: AttentionPlan) -> None:
    """Every fact of a batch that the host knows, before anything is uploaded."""
    spec, bounds, cache = plan.spec, plan.request.bounds, plan.request.cache
    starts = check_indptr("q_indptr", batch.q_indptr).tolist()
    q_lens, size = [stop - start for start, stop in pairwise(starts)], len(starts) - 1
    kv_lens = host_counts("kv_lens", batch.kv_lens, size)
    check_bound("q_indptr", "tokens", starts[-1], bounds.max_tokens)
    check_bound("q_indptr", "sequences", size, bounds.max_batch)
    check_bound("q_indptr", "tokens of one sequence", max(q_lens, default=0), bounds.max_q_len)
    check_bound("kv_lens", "keys of one sequence", max(kv_lens, default=0), bounds.max_kv_len)
    if not isinstance(batch.kv_start, int):
        host_ints("kv_start", batch.kv_start, (size,))
    if batch.q_start is not None:
        host_ints("q_start", batch.q_start, (size,))
    if batch.q_positions is not None:
        host_ints("q_positions", batch.q_positions, (starts[-1],))
    if cache is None:
        if batch.block_table is not None:
            raise ContractError("block_table", "None: the request has no cache", "an array")
        if batch.kv_indptr is None:
            raise ContractError("kv_indptr", "row starts of k and v: the request has no cache", None)
        held = np.diff(check_indptr("kv_indptr", batch.kv_indptr, size + 1))
        if np.any(held < kv_lens):
            at = int(np.argmax(held < kv_lens))
            raise ContractError("kv_lens", f"at most the {held[at]} rows of request {at}", kv_lens[at])
    else:
        if batch.kv_indptr is not None:
            raise ContractError("kv_indptr", "None: keys and values are in a cache", "an array")
        _check_block_table(batch.block_table, kv_lens, cache.block_size, cache.num_blocks)
    _check_tree(batch, spec, q_lens, kv_lens)


def _check_block_table(table: Any, kv_lens: list[int], block_size: int, num_blocks: int) -> None:
    if table is None:
        raise ContractError("block_table", "i32[B, W]: the request has a cache", None)
    blocks = host_array("block_table", table, (len(kv_lens), None))
    need = -(-max(kv_lens, default=0) // block_size)
    if need > blocks.shape[1]:
        raise ContractError("block_table", f"at least {need} columns for kv_len {max(kv_lens)}", blocks.shape[1])
    # Read as unsigned, a number below 0 is a large one. What is never dereferenced may be out of range.
    if blocks.size and int(blocks.view(f"u{blocks.itemsize}").max()) >= num_blocks:
        used = -(-np.array(kv_lens)[:, None] // block_size)
        bad = (np.arange(blocks.shape[1]) < used) & ((blocks < 0) | (blocks >= num_blocks))
        if bad.any():
            row, column = map(int, np.argwhere(bad)[0])
            raise ContractError(f"block_table[{row}, {column}]", f"0 to {num_blocks - 1}", int(blocks[row, column]))


def _check_tree(batch: AttentionBatch, spec: AttentionSpec, q_lens: list[int], kv_lens: list[int]) -> None:
    if spec.mask != "tree":
        if batch.mask_indptr is not None:
            raise ContractError("mask_indptr", f"None for mask {spec.mask!r}", "an array")
        return
    if batch.mask_indptr is None:
        raise ContractError("mask_indptr", "byte offsets i64[B+1] for mask 'tree'", None)
    starts = check_indptr("mask_indptr", batch.mask_indptr, len(q_lens) + 1).tolist()
    for at, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        need, have = (q_len * q_len + 7) // 8, starts[at + 1] - starts[at]
        if have < need:
            raise ContractError("mask_indptr", f"{need} bytes for request {at}", have)
        if q_len > kv_len:
            raise ContractError("kv_lens", f"at least q_len={q_len} for mask 'tree'", kv_len)
    needs = [
        n
        for n, on in (("window_left", spec.window_left), ("window_right", spec.window_right), ("alibi", spec.alibi))
        if on not in (None, False)
    ]
    if needs and batch.q_positions is None:
        raise ContractError("q_positions", f"i32[T]: mask 'tree' together with {needs[0]}", None)


@dataclass(frozen=True)
class MergeStatesSpec(Spec):
    """The union of attention over disjoint key sets, from each part's output and natural-log LSE."""

    op: ClassVar[str] = "merge_states"

    num_heads: int
    head_dim: int
    in_dtype: str = "f32"
    out_dtype: str = "f32"

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ContractError(name, "at least 1", getattr(self, name))
        check_float(self.in_dtype, "in_dtype")
        check_float(self.out_dtype, "out_dtype")


class MergeStatesPlan(Plan):
    """run(outs[S, T, H, D], lses f32[S, T, H]) -> out[T, H, D], lse f32[T, H].

    lse = log(sum_s exp(lse_s)); out = sum_s exp(lse_s - lse) out_s. Parts with LSE -inf add nothing, whatever their
    output holds; all parts -inf: out 0, LSE -inf. Method: online softmax, Milakov and Gimelshein 2018.
    """

    spec_type = MergeStatesSpec

    def run(self, outs: Array, lses: Array, *, out: Array | None = None) -> tuple[Array, Array]:
        spec = self.request.spec
        assert isinstance(spec, MergeStatesSpec)
        parts, rows, _, _ = check_array(
            self.session, "outs", outs, spec.in_dtype, (None, None, spec.num_heads, spec.head_dim)
        )
        if parts < 1:
            raise ContractError("outs", "at least one part", parts)
        check_array(self.session, "lses", lses, "f32", (parts, rows, spec.num_heads))
        if out is not None:
            check_array(self.session, "out", out, spec.out_dtype, (rows, spec.num_heads, spec.head_dim))
        result: tuple[Array, Array] = self._call(self._run, outs, lses, out, outs={"out": out})
        return result

    @abstractmethod
    def _run(self, outs: Array, lses: Array, out: Array | None) -> tuple[Array, Array]: ...
