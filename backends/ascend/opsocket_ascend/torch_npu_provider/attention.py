"""Attention by `npu_fused_infer_attention_score`: prefill, chunks, decode and verification in one call."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from opsocket.operators import AttentionBatch, AttentionPlan, Cache, Ragged, Reason, Unsupported
from opsocket_ascend.device_array import DeviceArray
from opsocket_ascend.graph import Recordable
from opsocket_ascend.graph_tasks import at_once
from opsocket_ascend.layouts import KERNEL_BLOCK
from opsocket_ascend.torch_npu_provider import sequences, strict
from opsocket_ascend.torch_npu_provider.strict_attention import MASK_SIDE, MOST_LATENT_QUERIES

_ARRAYS: Final = ("given", "wanted", "written", "empty")


class NpuAttention(Recordable, AttentionPlan):
    """Layout TND over blocks of 128 tokens, lengths as lists on the host; `sequences` says how a batch is told.

    Over latent pages: the operator with the rotary part apart (`query_rope`, `key_rope`), at most 16 queries of a
    sequence, more become several. Over int8 pages: one query of each, so that a request with n queries reads its keys n
    times. What no sequences can say is Unsupported: lengths that are not exact, queries past their keys with a window.
    """

    tasks = 1

    def _setup(self) -> None:
        side, bounds, cache = MASK_SIDE, self.request.bounds, self.request.cache
        assert cache is not None
        causal = self.spec.mask == "causal"
        self._mask = self.session.upload(np.triu(np.ones((side, side), np.int8), 1)) if causal else None
        self._told: sequences.Sequences | None = None
        self._longest = None
        if cache.k.is_quantized:
            self._longest = 1
        elif cache.kind == "latent":
            self._longest = MOST_LATENT_QUERIES if causal else 1
        tokens = bounds.max_tokens or 0
        given_twice = 1 if self.spec.window_left is None else 2
        self._rows = {name: DeviceArray(self.session, "i64", given_twice * tokens) for name in _ARRAYS}
        most = tokens if self._longest or bounds.max_batch is None else min(tokens, bounds.max_batch)
        width = -(-bounds.max_kv_len // KERNEL_BLOCK) if bounds.max_kv_len else 0
        self._table = DeviceArray(self.session, "i32", most * width)
        self._most_blocks, self._least_blocks = width, 0

    def _update(self, batch: AttentionBatch) -> None:
        assert self.request.cache is not None
        reasons = sequences.refusals(batch, self.spec)
        told = None if reasons else sequences.sequences(batch, self.spec, self.request.cache, self._longest)
        if told is not None and len(told.q_ends) > sequences.MOST_SEQUENCES:
            want = f"at most {sequences.MOST_SEQUENCES} sequences, of {self._longest or 'any number of'} queries"
            reasons = (Reason("sequences", "batch", len(told.q_ends), want),)
        if told is None or reasons:
            raise Unsupported(reasons, request=self.request, backend=str(self.session.device))
        told = replace(told, table=self._widened(told.table))
        found = {name: getattr(told, name) for name in _ARRAYS if getattr(told, name) is not None}
        self._table.write(told.table)
        for name, values in found.items():
            self._rows[name].write(values)
        self._told = told

    def _widened(self, table: np.ndarray) -> np.ndarray:
        more = max(0, self._least_blocks - table.shape[1])
        return np.pad(table, ((0, 0), (0, more)))

    def graph_form(self) -> Hashable:
        """Tables get the width of the request's bounds, so that keys may come to be more."""
        told = self._told
        assert told is not None
        if self._least_blocks < self._most_blocks:
            self._least_blocks = self._most_blocks
            told = self._told = replace(told, table=self._widened(told.table))
            self._table.write(told.table)
        arrays = {name: getattr(told, name) for name in _ARRAYS}
        shapes = tuple(None if values is None else values.size for values in arrays.values())
        addresses = (self._table.address, *(self._rows[name].address for name in _ARRAYS))
        rows = told.q_ends[-1] if told.q_ends else 0
        return rows, told.is_masked, told.table.shape, shapes, addresses

    def _lengths(self) -> tuple[list[int], list[int]]:
        told = self._told
        assert told is not None
        strict.check_lengths(
            told.q_ends[-1], told.q_ends, told.kv_lens, self._table.take(told.table.shape), KERNEL_BLOCK, told.is_masked
        )
        return told.q_ends, told.kv_lens

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
        assert isinstance(kv, Cache)
        spec, told = self.spec, self._told
        assert told is not None
        if out is None:
            out = self.session.empty((len(q), spec.num_q_heads, spec.head_dim_vo), spec.out_dtype)
        if spec.want_lse and lse_out is None:
            lse_out = self.session.empty((len(q), spec.num_q_heads), "f32")
        if told.q_ends:
            given = self._at("given")
            rows = q[: told.q_ends[-1]] if given is None else q.index_select(0, given)
            got, lse = self._fused(rows, kv, sinks, told)
            self._keep(out, got)
            if lse_out is not None:
                self._keep(lse_out, lse.view(len(rows), spec.num_q_heads))
        if told.empty.size:
            empty = self._rows["empty"].take(told.empty.shape)
            out.index_fill_(0, empty, 0)
            if lse_out is not None:
                lse_out.index_fill_(0, empty, -math.inf)
        return out, lse_out

    def _at(self, name: str) -> torch.Tensor | None:
        """Rows on the device; None where a batch needs none of that kind."""
        assert self._told is not None
        values = getattr(self._told, name)
        return None if values is None else self._rows[name].take(values.shape)

    def _keep(self, out: torch.Tensor, got: torch.Tensor) -> None:
        wanted, written = self._at("wanted"), self._at("written")
        if wanted is not None:
            got = got.index_select(0, wanted)
        if written is None:
            out[: len(got)] = got
        else:
            out.index_copy_(0, written, got)

    def _fused(
        self, q: torch.Tensor, kv: Cache, sinks: torch.Tensor | None, told: sequences.Sequences
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spec, tasks = self.spec, getattr(self.session, "tasks", None)
        pages = {
            name: plane.view(-1, KERNEL_BLOCK, *plane.shape[2:]) for name, plane in kv.planes.items() if plane.dim() > 3
        }
        is_latent = kv.spec.kind == "latent"
        return strict.fused_infer_attention(
            q[..., : spec.head_dim_vo].contiguous(),
            pages["k"],
            pages["k" if is_latent else "v"],
            num_heads=spec.num_q_heads,
            num_kv_heads=spec.num_kv_heads,
            scale=spec.scale,
            q_ends=told.q_ends,
            kv_lens=told.kv_lens,
            block_table=self._table.take(told.table.shape),
            mask=self._mask if told.is_masked else None,
            want_lse=spec.want_lse,
            window=spec.window_left,
            key_scale=kv.planes.get("k_scale"),
            value_scale=kv.planes.get("v_scale"),
            q_rope=q[..., spec.head_dim_vo :].contiguous() if is_latent else None,
            key_rope=pages["k_rope"] if is_latent else None,
            sinks=None if sinks is None else sinks.bfloat16(),
            issue=at_once if tasks is None else tasks.recorder(self._lengths),
        )
