"""A decoder made of operators alone: every computation of a step is a plan's `run`.

Llama (SmolLM2, Yi, Mistral), Qwen2 and Qwen3 differ by flags of their configuration. One plan serves all layers that
make the same request. No array is touched by anything but the session and its plans, so any session's arrays will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opsocket.operators import Array, Cache, PackedWeight, Request, Session
from opsocket.quantization import concatenate
from opsocket_engine.batch import StepBatch
from opsocket_engine.checkpoint import Checkpoint
from opsocket_engine.requests import CacheRequests, DecoderRequests, LayerRequests, Projection


class CachePlans:
    """Every layer's plans of the operators that take a step's batch; equal requests share one."""

    def __init__(self, plan: Callable[[Request], Any], layers: Sequence[CacheRequests]) -> None:
        distinct = dict.fromkeys(request for layer in layers for request in (layer.cache_write, layer.attention))
        made = {request: plan(request) for request in distinct}
        self.cache_write = [made[layer.cache_write] for layer in layers]
        self.attention = [made[layer.attention] for layer in layers]
        self._writes, self._attentions = dict.fromkeys(self.cache_write), dict.fromkeys(self.attention)

    def exchanged(self, others: CachePlans) -> dict[Any, Any]:
        """Each plan to that of `others` which serves the same layers."""
        return dict(zip((*self._writes, *self._attentions), (*others._writes, *others._attentions), strict=True))

    def update(self, batch: StepBatch) -> None:
        for plan in self._attentions:
            plan.update(batch.attention)
        for plan in self._writes:
            plan.update(batch.cache_write)


class Outputs:
    """Arrays for what the operators of a step of `rows` tokens compute: one by each name, which all layers share."""

    def __init__(self, session: Session, rows: int) -> None:
        self._session = session
        self.rows = rows
        self._arrays: dict[Any, Array] = {}

    def __call__(self, name: str, dtype: str, *shape: int) -> Array:
        key = name, dtype, shape
        if key not in self._arrays:
            self._arrays[key] = self._session.empty((self.rows, *shape), dtype)
        return self._arrays[key]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a step is computed from, on the device: token_ids, positions i64[T], and the plans that have its batch.

    rows i64[num_rows]: the hidden states whose logits are wanted; None where those are all, in order. outputs,
    row_outputs: the arrays to compute into, for all tokens and for those of `rows` alone; None for new ones.
    """

    num_tokens: int
    token_ids: Array
    positions: Array
    num_rows: int
    rows: Array | None
    plans: CachePlans
    outputs: Outputs | None = None
    row_outputs: Outputs | None = None

    def of_rows(self) -> Inputs:
        """What goes on with the rows alone, once they are taken."""
        return replace(self, num_tokens=self.num_rows, rows=None, outputs=self.row_outputs)

    def out(self, name: str, dtype: str, *shape: int) -> Array | None:
        """Where an operator puts its result of `shape` for each token."""
        return None if self.outputs is None else self.outputs(name, dtype, *shape)


class Decoder:
    """Weights, caches and plans of one model on one session. `plans` holds the plan of every distinct request.

    weight_bytes: what the matrices take on the device. step_bytes: what a step reads of them, which is all but a table
    from which it only looks up rows. cache_bytes: what the caches take.
    """

    def __init__(self, session: Session, checkpoint: Checkpoint, requests: DecoderRequests) -> None:
        self._session = session
        self.requests = requests
        self.plans: dict[Request, Any] = {request: session.plan(request) for request in requests.distinct()}
        loader = _Loader(session, checkpoint, self.plans)
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
        self._copy_blocks = self.plans[requests.copy_blocks]
        self._mixed = CachePlans(self.plans.__getitem__, [layer.mixed for layer in requests.layers])
        self._decode = CachePlans(self.plans.__getitem__, [layer.decode for layer in requests.layers])
        self.weight_bytes = sum(weight.nbytes for weight in loader.weights)
        looked_up = 0 if self._table is tied else self._table.nbytes
        self.step_bytes = self.weight_bytes - looked_up
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


@dataclass(frozen=True, eq=False)
class _Linear:
    """y = x W^T + b, under a name that its output goes by."""

    name: str
    plan: Any
    weight: PackedWeight
    bias: Array | None

    def __call__(self, inputs: Inputs, x: Array) -> Array:
        out = inputs.out(self.name, self.plan.spec.out_dtype, self.plan.spec.n)
        return self.plan.run(x, self.weight, self.bias, out=out)


@dataclass(frozen=True, eq=False)
class _Projections:
    """Matrices that multiply the same input; their outputs come back by name."""

    linears: tuple[tuple[Projection, _Linear], ...]
    split: Callable[[Array, Sequence[int]], tuple[Array, ...]]

    def __call__(self, inputs: Inputs, x: Array) -> dict[str, Array]:
        outputs = {}
        for projection, linear in self.linears:
            y = linear(inputs, x)
            parts = (y,) if len(projection.names) == 1 else self.split(y, projection.widths)
            outputs |= zip(projection.names, parts, strict=True)
        return outputs


@dataclass(frozen=True, eq=False)
class _Norm:
    """RMS norm; where the plan has a residual: (normed sum, sum)."""

    name: str
    plan: Any
    weight: Array

    def __call__(self, inputs: Inputs, x: Array, residual: Array | None = None) -> Any:
        spec = self.plan.request.spec
        shape = (spec.width,) if spec.heads is None else (spec.heads, spec.width)
        out = inputs.out(self.name, spec.dtype, *shape)
        if residual is None:
            return self.plan.run(x, self.weight, out=out)
        added = inputs.out(self.name + " sum", spec.dtype, *shape)
        return self.plan.run(x, self.weight, residual, out=out, residual_out=added)


@dataclass(frozen=True, eq=False)
class _Loader:
    """Brings weights onto the session, each prepared by the kernel that will read it."""

    session: Session
    checkpoint: Checkpoint
    plans: dict[Request, Any]
    weights: list[PackedWeight] = field(default_factory=list)

    def linear(self, name: str, output: str, request: Request) -> _Linear:
        return self._linear([name], output, request)

    def projections(self, prefix: str, projections: Sequence[Projection]) -> _Projections:
        linears = []
        for projection in projections:
            names = [prefix + name for name in projection.names]
            linears.append((projection, self._linear(names, "+".join(projection.names), projection.request)))
        return _Projections(tuple(linears), self.session.split)

    def norm(self, name: str, output: str, request: Request) -> _Norm:
        return _Norm(output, self.plans[request], self.session.upload(self.checkpoint.vector(name)))

    def table(self, name: str, request: Request, tied: PackedWeight | None) -> PackedWeight:
        """The embedding's table: the output head's weight where they are tied and one layout serves both kernels."""
        if tied is not None and tied.layout in self.plans[request].weight_layouts:
            return tied
        return self._prepare([name], request)

    def _linear(self, names: Sequence[str], output: str, request: Request) -> _Linear:
        plan, bias = self.plans[request], None
        if plan.spec.bias:
            bias = self.session.upload(np.concatenate([self.checkpoint.vector(f"{name}_bias") for name in names]))
        return _Linear(output, plan, self._prepare(names, request), bias)

    def _prepare(self, names: Sequence[str], request: Request) -> PackedWeight:
        tensors = concatenate([self.checkpoint.weight(name) for name in names]).tensors
        weight = self.session.prepare_weight(request, tensors)
        self.weights.append(weight)
        return weight


class _Layer:
    """Attention, then a gated MLP, each on the normed residual stream."""

    def __init__(self, loader: _Loader, index: int, requests: LayerRequests, rope_factors: Array | None) -> None:
        prefix = f"layers.{index}."

        def linear(name: str, request: Request) -> _Linear:
            return loader.linear(prefix + name, name, request)

        def norm(name: str, request: Request) -> _Norm:
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
        self._gate_up = loader.projections(prefix, requests.gate_up)
        self._silu_mul = loader.plans[requests.silu_mul]
        self._down_proj = linear("down_proj", requests.down_proj)
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
        """(what the MLP adds to the residual stream, the stream before that); of all rows, or of some."""
        normed, residual = self._mlp_norm(inputs, self._o_proj(inputs, attended), residual)
        y = self._gate_up(inputs, normed)
        out = inputs.out("silu_mul", self._dtype, self._silu_mul.request.spec.width)
        return self._down_proj(inputs, self._silu_mul.run(y["gate_proj"], y["up_proj"], out=out)), residual


def _cache_bytes(cache: Cache) -> int:
    return cache.spec.num_blocks * cache.layout.bytes_per_block
