"""A decoder made of operators alone: every computation of a step is a plan's `run`.

Llama (SmolLM2, Yi, Mistral, Mixtral), Qwen2, Qwen3 and its mixtures differ by flags of their configuration. One plan
serves all layers that make the same request. No array is touched by anything but the session and its plans, so any
session's arrays will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from opsocket.operators import Array, Cache, Request, Session
from opsocket_engine.batch import StepBatch
from opsocket_engine.checkpoint import Checkpoint
from opsocket_engine.feed_forward import Experts, Mlp
from opsocket_engine.inputs import CachePlans, Inputs
from opsocket_engine.requests import DecoderRequests, ExpertsRequests, LayerRequests
from opsocket_engine.weights import Linear, Loader, Loading, Norm


class Decoder:
    """Weights, caches and plans of one model on one session. `plans` holds the plan of every distinct request.

    weight_bytes: what the matrices take on the device. step_bytes: what a step reads of them at least, which is all but
    a table from which it only looks up rows, and experts that one token does not meet. cache_bytes: what the caches
    take. rows_each: how many rows a step's arrays have for each token: one; where there are experts, others `top_k`.
    """

    def __init__(
        self,
        session: Session,
        checkpoint: Checkpoint,
        requests: DecoderRequests,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._session = session
        self.requests = requests
        self.plans: dict[Request, Any] = {request: session.plan(request) for request in requests.distinct()}
        loading = None if progress is None else Loading(progress, checkpoint)
        loader = Loader(session, checkpoint, self.plans, loading)
        factors = checkpoint.config.rope.frequency_factors
        rope_factors = session.upload(np.array(factors, np.float32)) if factors else None
        self._embedding = self.plans[requests.embedding]
        self._layers = [_Layer(loader, i, layer, rope_factors) for i, layer in enumerate(requests.layers)]
        self._norm = loader.norm("norm", "norm", requests.norm)
        self._take_attended = self.plans[requests.take_attended]
        self._take_residual = self.plans[requests.take_residual]
        self._lm_head = loader.linear("lm_head", "lm_head", requests.lm_head)
        tied = None if checkpoint.has("lm_head") else self._lm_head.weight
        self._table = loader.table("embed_tokens", requests.embedding, tied)
        if loading is not None:
            loading.end()
        self._copy_blocks = self.plans[requests.copy_blocks]
        self._mixed = CachePlans(self.plans.__getitem__, [layer.mixed for layer in requests.layers])
        self._decode = CachePlans(self.plans.__getitem__, [layer.decode for layer in requests.layers])
        experts_bytes = sum(weight.nbytes for weight in loader.expert_weights)
        self.weight_bytes = sum(weight.nbytes for weight in loader.weights) + experts_bytes
        looked_up = 0 if self._table is tied else self._table.nbytes
        experts = checkpoint.config.experts
        met_bytes = int(experts_bytes * experts.share) if experts else 0
        self.step_bytes = self.weight_bytes - looked_up - experts_bytes + met_bytes
        self.rows_each = tuple(dict.fromkeys((1, experts.top_k if experts else 1)))
        self.cache_bytes = sum(_cache_bytes(layer.cache) for layer in self._layers)

    def forward(self, batch: StepBatch) -> Array | None:
        """Run one step: its keys and values go into the cache; logits f32[R, V] of the wanted rows come back, None
        where there are none."""
        self.copy_blocks(batch)
        plans = self._decode if batch.is_decode else self._mixed
        plans.update(batch)
        upload, num_rows = self._session.upload, len(batch.rows)
        rows = upload(batch.rows) if num_rows and not batch.is_decode else None
        return self.run(
            Inputs(len(batch.token_ids), upload(batch.token_ids), upload(batch.positions), num_rows, rows, plans)
        )

    def copy_blocks(self, batch: StepBatch) -> None:
        """Carry out the copies that a step begins with."""
        if batch.copies is not None:
            self._copy_blocks.update(batch.copies)
            for layer in self._layers:
                layer.cache = self._copy_blocks.run(layer.cache, layer.cache)

    def run(self, inputs: Inputs) -> Array | None:
        """`forward`, once copies, uploads and updates are done: nothing but runs of plans."""
        table = self._embedding.spec
        out = inputs.out("embedding", table.out_dtype, table.k)
        x, residual = self._embedding.run(inputs.token_ids, self._table, out=out), None
        last = self._layers[-1]
        for layer in self._layers:
            q, residual = layer.write_cache(inputs, x, residual)
            if layer is last and not inputs.num_rows:
                return None
            attended = layer.attend(inputs, q)
            if layer is last and inputs.rows is not None:
                # Who goes on from the cache needs no more of the other rows.
                rows, inputs = inputs.rows, inputs.of_rows()
                attended = self._take("attended", self._take_attended, inputs, attended, rows)
                residual = self._take("residual", self._take_residual, inputs, residual, rows)
            x, residual = layer.feed_forward(inputs, attended, residual)
        x, _ = self._norm(inputs, x, residual)
        return self._lm_head(inputs, x)

    def _take(self, name: str, plan: Any, inputs: Inputs, x: Array, rows: Array) -> Array:
        spec = plan.request.spec
        return plan.run(x, rows, out=inputs.out(name, spec.dtype, spec.width))


class _Layer:
    """Attention, then an MLP or a mixture of them, each on the normed residual stream."""

    def __init__(self, loader: Loader, index: int, requests: LayerRequests, rope_factors: Array | None) -> None:
        prefix = f"layers.{index}."

        def linear(name: str, request: Request) -> Linear:
            return loader.linear(prefix + name, name, request)

        def norm(name: str, request: Request) -> Norm:
            return loader.norm(prefix + name, name, request)

        spec: Any = requests.mixed.attention.spec
        self._index = index
        self._q_shape = (spec.num_q_heads, spec.head_dim_qk)
        self._kv_shape = (spec.num_kv_heads, spec.head_dim_qk)
        self._dtype = spec.q_dtype
        self._view = loader.session.view
        self._rope_factors = rope_factors
        self._attn_norm = norm("attn_norm", requests.attn_norm)
        self._qkv = loader.projections(prefix, requests.qkv)
        self._q_norm = norm("q_norm", requests.q_norm) if requests.q_norm else None
        self._k_norm = norm("k_norm", requests.k_norm) if requests.k_norm else None
        self._q_rope = loader.plans[requests.q_rope]
        self._k_rope = loader.plans[requests.k_rope]
        self._o_proj = linear("o_proj", requests.o_proj)
        self._mlp_norm = norm("mlp_norm", requests.mlp_norm)
        is_mixture = isinstance(requests.feed_forward, ExpertsRequests)
        self._feed_forward = (Experts if is_mixture else Mlp)(loader, prefix, requests.feed_forward)
        cache_spec = requests.mixed.attention.cache
        assert cache_spec is not None
        self.cache: Cache = loader.session.allocate_cache(cache_spec)

    def write_cache(self, inputs: Inputs, x: Array, residual: Array | None) -> tuple[Array, Array]:
        """Put the step's keys and values into the cache: (q, the residual stream). x, residual: what the layer before
        adds to the stream, the stream before that; for the first layer the stream itself, and None."""
        if residual is None:
            normed, residual = self._attn_norm(inputs, x), x
        else:
            normed, residual = self._attn_norm(inputs, x, residual)
        rows, out, dtype = inputs.num_tokens, inputs.out, self._dtype
        y = self._qkv(inputs, normed)
        q = self._view(y["q_proj"], (rows, *self._q_shape))
        k = self._view(y["k_proj"], (rows, *self._kv_shape))
        v = self._view(y["v_proj"], (rows, *self._kv_shape))
        if self._q_norm and self._k_norm:
            q, k = self._q_norm(inputs, q), self._k_norm(inputs, k)
        q = self._q_rope.run(q, inputs.positions, self._rope_factors, out=out("q_rope", dtype, *self._q_shape))
        k = self._k_rope.run(k, inputs.positions, self._rope_factors, out=out("k_rope", dtype, *self._kv_shape))
        self.cache = inputs.plans.cache_write[self._index].run(self.cache, k, v)
        return q, residual

    def attend(self, inputs: Inputs, q: Array) -> Array:
        """Of all heads, side by side."""
        out = inputs.out("attention", self._dtype, *self._q_shape)
        attended, _ = inputs.plans.attention[self._index].run(q, self.cache, out=out)
        return self._view(attended, (inputs.num_tokens, self._q_shape[0] * self._q_shape[1]))

    def feed_forward(self, inputs: Inputs, attended: Array, residual: Array) -> tuple[Array, Array]:
        """(what that adds to the residual stream, the stream before that); of all rows, or of some."""
        normed, residual = self._mlp_norm(inputs, self._o_proj(inputs, attended), residual)
        return self._feed_forward(inputs, normed), residual


def _cache_bytes(cache: Cache) -> int:
    return cache.spec.num_blocks * cache.layout.bytes_per_block
