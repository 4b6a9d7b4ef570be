"""A decoder made of operators alone: every computation of a step is a plan's `run`.

Llama (SmolLM2, Yi, Mistral), Qwen2 and Qwen3 differ by flags of their configuration. One plan serves all layers that
make the same request. At a step's edge `Session.upload` brings ids and positions up; what comes down is the caller's
to download. No array is touched by anything but the session and its plans, so any session's arrays will do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opsocket.operators import Array, Cache, PackedWeight, Request, Session
from opsocket_engine.batch import StepBatch
from opsocket_engine.checkpoint import Checkpoint
from opsocket_engine.requests import DecoderRequests, LayerRequests


class Decoder:
    """Weights, caches and plans of one model on one session. `plans` holds the plan of every distinct request.

    weight_bytes: what the matrices take on the device. step_bytes: what a step reads of them, which is all but a table
    from which it only looks up rows. cache_bytes: what the caches take.
    """

    def __init__(self, session: Session, checkpoint: Checkpoint, requests: DecoderRequests) -> None:
        self._session = session
        self.plans: dict[Request, Any] = {request: session.plan(request) for request in requests.distinct()}
        loader = _Loader(session, checkpoint, self.plans)
        factors = checkpoint.config.rope.frequency_factors
        rope_factors = session.upload(np.array(factors, np.float32)) if factors else None
        self._embedding = self.plans[requests.embedding]
        self._layers = [_Layer(loader, i, layer, rope_factors) for i, layer in enumerate(requests.layers)]
        self._norm = loader.norm("norm", requests.norm)
        self._take_rows = self.plans[requests.take_rows]
        self._lm_head = loader.linear("lm_head", requests.lm_head)
        tied = None if checkpoint.has("lm_head") else self._lm_head.weight
        self._table = loader.table("embed_tokens", requests.embedding, tied)
        self._copy_blocks = self.plans[requests.copy_blocks]
        self._attention = {self.plans[layer.attention] for layer in requests.layers}
        self._cache_write = {self.plans[layer.cache_write] for layer in requests.layers}
        self.weight_bytes = sum(weight.nbytes for weight in loader.weights)
        looked_up = 0 if self._table is tied else self._table.nbytes
        self.step_bytes = self.weight_bytes - looked_up
        self.cache_bytes = sum(_cache_bytes(layer.cache) for layer in self._layers)

    def forward(self, batch: StepBatch) -> Array | None:
        """Run one step: its keys and values go into the cache; logits f32[R, V] of the wanted rows come back, None
        where there are none."""
        if batch.copies is not None:
            self._copy_blocks.update(batch.copies)
            for layer in self._layers:
                layer.cache = self._copy_blocks.run(layer.cache, layer.cache)
        for plan in self._attention:
            plan.update(batch.attention)
        for plan in self._cache_write:
            plan.update(batch.cache_write)
        positions = self._session.upload(batch.positions)
        x, residual = self._embedding.run(self._session.upload(batch.token_ids), self._table), None
        for layer in self._layers:
            x, residual = layer(x, residual, positions, len(batch.token_ids))
        if not len(batch.rows):
            return None
        x, _ = self._norm(x, residual)
        return self._lm_head(self._take_rows.run(x, self._session.upload(batch.rows)))


@dataclass(frozen=True, eq=False)
class _Linear:
    """y = x W^T + b."""

    plan: Any
    weight: PackedWeight
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        return self.plan.run(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class _Norm:
    """RMS norm; where the plan has a residual: (normed sum, sum)."""

    plan: Any
    weight: Array

    def __call__(self, x: Array, residual: Array | None = None) -> Any:
        return self.plan.run(x, self.weight, residual)


@dataclass(frozen=True, eq=False)
class _Loader:
    """Brings weights onto the session, each prepared by the kernel that will read it."""

    session: Session
    checkpoint: Checkpoint
    plans: dict[Request, Any]
    weights: list[PackedWeight] = field(default_factory=list)

    def linear(self, name: str, request: Request) -> _Linear:
        plan = self.plans[request]
        bias = self.session.upload(self.checkpoint.vector(f"{name}_bias")) if plan.spec.bias else None
        return _Linear(plan, self._prepare(name, request), bias)

    def norm(self, name: str, request: Request) -> _Norm:
        return _Norm(self.plans[request], self.session.upload(self.checkpoint.vector(name)))

    def table(self, name: str, request: Request, tied: PackedWeight | None) -> PackedWeight:
        """The embedding's table: the output head's weight where they are tied and one layout serves both kernels."""
        if tied is not None and tied.layout in self.plans[request].weight_layouts:
            return tied
        return self._prepare(name, request)

    def _prepare(self, name: str, request: Request) -> PackedWeight:
        weight = self.session.prepare_weight(request, self.checkpoint.weight(name).tensors)
        self.weights.append(weight)
        return weight


class _Layer:
    """Attention, then a gated MLP, each on the normed residual stream."""

    def __init__(self, loader: _Loader, index: int, requests: LayerRequests, rope_factors: Array | None) -> None:
        def linear(name: str, request: Request) -> _Linear:
            return loader.linear(f"layers.{index}.{name}", request)

        def norm(name: str, request: Request) -> _Norm:
            return loader.norm(f"layers.{index}.{name}", request)

        spec: Any = requests.attention.spec
        self._q_shape = (spec.num_q_heads, spec.head_dim_qk)
        self._kv_shape = (spec.num_kv_heads, spec.head_dim_qk)
        self._view = loader.session.view
        self._rope_factors = rope_factors
        self._attn_norm = norm("attn_norm", requests.attn_norm)
        self._q_proj = linear("q_proj", requests.q_proj)
        self._k_proj = linear("k_proj", requests.k_proj)
        self._v_proj = linear("v_proj", requests.v_proj)
        self._q_norm = norm("q_norm", requests.q_norm) if requests.q_norm else None
        self._k_norm = norm("k_norm", requests.k_norm) if requests.k_norm else None
        self._q_rope = loader.plans[requests.q_rope]
        self._k_rope = loader.plans[requests.k_rope]
        self._cache_write = loader.plans[requests.cache_write]
        self._attention = loader.plans[requests.attention]
        self._o_proj = linear("o_proj", requests.o_proj)
        self._mlp_norm = norm("mlp_norm", requests.mlp_norm)
        self._gate_proj = linear("gate_proj", requests.gate_proj)
        self._up_proj = linear("up_proj", requests.up_proj)
        self._silu_mul = loader.plans[requests.silu_mul]
        self._down_proj = linear("down_proj", requests.down_proj)
        cache_spec = requests.attention.cache
        assert cache_spec is not None
        self.cache: Cache = loader.session.allocate_cache(cache_spec)

    def __call__(self, x: Array, residual: Array | None, positions: Array, num_tokens: int) -> tuple[Array, Array]:
        """(what this layer's MLP adds to the residual stream, the stream before that). x, residual: the same of the
        layer before; for the first layer the stream itself, and None."""
        if residual is None:
            normed, residual = self._attn_norm(x), x
        else:
            normed, residual = self._attn_norm(x, residual)
        normed, residual = self._mlp_norm(self._attend(normed, positions, num_tokens), residual)
        return self._down_proj(self._silu_mul.run(self._gate_proj(normed), self._up_proj(normed))), residual

    def _attend(self, x: Array, positions: Array, num_tokens: int) -> Array:
        q = self._view(self._q_proj(x), (num_tokens, *self._q_shape))
        k = self._view(self._k_proj(x), (num_tokens, *self._kv_shape))
        v = self._view(self._v_proj(x), (num_tokens, *self._kv_shape))
        if self._q_norm and self._k_norm:
            q, k = self._q_norm(q), self._k_norm(k)
        q = self._q_rope.run(q, positions, self._rope_factors)
        k = self._k_rope.run(k, positions, self._rope_factors)
        self.cache = self._cache_write.run(self.cache, k, v)
        out, _ = self._attention.run(q, self.cache)
        return self._o_proj(self._view(out, (num_tokens, self._q_shape[0] * self._q_shape[1])))


def _cache_bytes(cache: Cache) -> int:
    return cache.spec.num_blocks * cache.layout.bytes_per_block
