"""Every operator request that a decoder makes, as data, from its configuration and the formats of its weights.

Nothing here needs a device or a weight's bytes, so placement can be explained before anything is loaded. Equal layers
make equal requests, and equal requests share one plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from opsocket.operators import (
    ArgmaxSpec,
    AttentionSpec,
    Bounds,
    CacheCopyBlocksSpec,
    CacheSpec,
    CacheWriteSpec,
    EmbeddingSpec,
    GroupedMatmulSpec,
    MatmulSpec,
    MoECombineSpec,
    MoERouteSpec,
    MoESortSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SampleSpec,
    SiluMulSpec,
    TakeRowsSpec,
)
from opsocket.operators.errors import ContractError
from opsocket.quantization import get_format, rows_join, with_activation
from opsocket_engine.canonical import matrix_shapes
from opsocket_engine.config import ExpertsConfig, ModelConfig
from opsocket_engine.options import EngineOptions, parse_kv_format

FormatOf = Callable[[str], str]
"""Canonical name of a matrix -> id of the format that it is stored in."""


@dataclass(frozen=True)
class Projection:
    """One matmul by the rows of several matrices, `names`, that multiply the same input: its output is theirs, side by
    side, `widths` columns each."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    request: Request


@dataclass(frozen=True)
class CacheRequests:
    """The operators of one layer that take a step's batch."""

    cache_write: Request
    attention: Request


@dataclass(frozen=True)
class MlpRequests:
    """gate_up: gate_proj and up_proj, in as few products as their formats allow."""

    gate_up: tuple[Projection, ...]
    silu_mul: Request
    down_proj: Request


@dataclass(frozen=True)
class ExpertsRequests:
    """A mixture of experts, whose products take the rows of all of them. take: of each token the row for each of its
    experts."""

    router: Request
    route: Request
    sort: Request
    take: Request
    gate_up: tuple[Projection, ...]
    silu_mul: Request
    down_proj: Request
    combine: Request


@dataclass(frozen=True)
class LayerRequests:
    """One layer's operators, in the order in which they run.

    qkv: q_proj, k_proj and v_proj, in as few products as their formats allow. q_norm, k_norm: None where the model has
    no QK norm. decode: for steps in which every sequence computes one token
    (`StepBatch.is_decode`); mixed: for all others.
    """

    attn_norm: Request
    qkv: tuple[Projection, ...]
    q_norm: Request | None
    k_norm: Request | None
    q_rope: Request
    k_rope: Request
    mixed: CacheRequests
    decode: CacheRequests
    o_proj: Request
    mlp_norm: Request
    feed_forward: MlpRequests | ExpertsRequests


@dataclass(frozen=True)
class DecoderRequests:
    """All of a decoder's operators: from token ids to logits, from logits to token ids, and the copying of blocks.

    take_attended, take_residual: of the last layer's attention and of the residual stream, the rows that logits are
    wanted of; the rest of that layer computes no others.
    """

    embedding: Request
    layers: tuple[LayerRequests, ...]
    norm: Request
    take_attended: Request
    take_residual: Request
    lm_head: Request
    argmax: Request
    sample: Request
    copy_blocks: Request

    def distinct(self) -> list[Request]:
        """Each request once, in the order of first use."""
        return list(dict.fromkeys(_requests(self)))

    def decode_step(self) -> list[Request]:
        """Each request of a decode step once: all but sampling, the copying of blocks, and what other steps need."""
        layers = tuple(replace(layer, mixed=layer.decode) for layer in self.layers)
        return list(dict.fromkeys(_requests((self.embedding, layers, self.norm, self.lm_head, self.argmax))))

    def mixed_step(self) -> list[Request]:
        """The same of a step that is not all decoding."""
        layers = tuple(replace(layer, decode=layer.mixed) for layer in self.layers)
        rows = self.take_attended, self.take_residual
        return list(dict.fromkeys(_requests((self.embedding, layers, *rows, self.norm, self.lm_head))))


def cache_spec(config: ModelConfig, options: EngineOptions, num_blocks: int) -> CacheSpec:
    """The cache of one layer; all layers have the same."""
    kv_format = parse_kv_format(options.kv_format)
    heads, head_dim = config.num_kv_heads, config.head_dim
    return CacheSpec(num_blocks, options.block_size, heads, head_dim, head_dim, kv_format, kv_format)


def decoder_requests(
    config: ModelConfig, format_of: FormatOf, options: EngineOptions, num_blocks: int
) -> DecoderRequests:
    """The requests of a decoder whose caches have `num_blocks` blocks. format_of: as the weights are stored."""

    def product_format(name: str) -> str:
        """The format that a matrix is multiplied in. One of floats, or that states int8 activations itself, is kept; so
        is a router's, whose choices change at once where others' results change a little."""
        stored = get_format(format_of(name))
        is_kept = options.activations == "none" or name.endswith(".router")
        if is_kept or not stored.has_integer_codes or stored.activation != "none":
            return stored.id
        return with_activation(stored.id, options.activations)

    dtype, numerics = options.dtype, options.permitted
    shapes = matrix_shapes(config)
    cache = cache_spec(config, options, num_blocks)
    context = max_context(config, options, num_blocks)
    step = Bounds(max_tokens=options.max_step_tokens)
    sequences = Bounds(max_tokens=options.max_batch, max_batch=options.max_batch)
    mixed = Bounds(options.max_step_tokens, options.max_batch, min(options.max_step_tokens, context), context)
    decode = Bounds(options.max_batch, options.max_batch, 1, context)

    def matmul(name: str, bias: bool, out_dtype: str = dtype, bounds: Bounds = step) -> Request:
        n, k = shapes.get(name) or shapes["embed_tokens"]
        return Request(MatmulSpec(product_format(name), n, k, dtype, out_dtype, bias, numerics), bounds=bounds)

    def joined(prefix: str, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Matrices of one format are one matrix, wherever they stand in `names`."""
        groups: list[list[str]] = []
        for name in names:
            weight_format = product_format(prefix + name)
            same = (g for g in groups if product_format(prefix + g[0]) == weight_format)
            group = next(same, None) if rows_join(get_format(weight_format)) else None
            if group is None:
                groups.append([name])
            else:
                group.append(name)
        return list(map(tuple, groups))

    def projections(prefix: str, names: tuple[str, ...], bias: bool) -> tuple[Projection, ...]:
        return tuple(projection(prefix, group, bias) for group in joined(prefix, names))

    def projection(prefix: str, names: tuple[str, ...], bias: bool) -> Projection:
        widths = tuple(shapes[prefix + name][0] for name in names)
        k = shapes[prefix + names[0]][1]
        spec = MatmulSpec(product_format(prefix + names[0]), sum(widths), k, dtype, dtype, bias, numerics)
        return Projection(names, widths, Request(spec, bounds=step))

    def norm(residual: bool) -> Request:
        return Request(RMSNormSpec(config.hidden_size, config.rms_norm_eps, dtype, residual), bounds=step)

    def head_norm(heads: int) -> Request | None:
        spec = RMSNormSpec(config.head_dim, config.rms_norm_eps, dtype, heads=heads)
        return Request(spec, bounds=step) if config.qk_norm else None

    def rope(heads: int) -> Request:
        rope, factors = config.rope, bool(config.rope.frequency_factors)
        spec = RopeSpec(
            heads, config.head_dim, rope.rotary_dim, rope.theta, rope.interleaved, rope.scaling, factors, dtype
        )
        return Request(spec, bounds=step)

    def over_cache(window: int | None, bounds: Bounds) -> CacheRequests:
        spec = AttentionSpec(
            num_q_heads=config.num_q_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim_qk=config.head_dim,
            head_dim_vo=config.head_dim,
            scale=config.head_dim**-0.5,
            window_left=None if window is None else window - 1,
            q_dtype=dtype,
            kv_dtype=dtype,
            out_dtype=dtype,
            numerics=numerics,
        )
        write = Request(CacheWriteSpec(dtype), cache, bounds=Bounds(max_tokens=bounds.max_tokens))
        return CacheRequests(write, Request(spec, cache, bounds=bounds))

    def mlp(prefix: str) -> MlpRequests:
        return MlpRequests(
            gate_up=projections(prefix, ("gate_proj", "up_proj"), config.mlp_bias),
            silu_mul=Request(SiluMulSpec(config.intermediate_size, dtype), bounds=step),
            down_proj=matmul(prefix + "down_proj", config.mlp_bias),
        )

    def experts(prefix: str, mixture: ExpertsConfig) -> ExpertsRequests:
        choices, first = Bounds(max_tokens=options.max_step_tokens * mixture.top_k), f"{prefix}experts.0."

        def grouped(names: tuple[str, ...]) -> Projection:
            widths = tuple(shapes[first + name][0] for name in names)
            spec = GroupedMatmulSpec(
                mixture.num_experts, product_format(first + names[0]), sum(widths), shapes[first + names[0]][1],
                dtype, dtype, numerics=numerics,
            )  # fmt: skip
            return Projection(names, widths, Request(spec, bounds=choices))

        for name in ("gate_proj", "up_proj", "down_proj"):
            formats = {format_of(f"{prefix}experts.{e}.{name}") for e in range(mixture.num_experts)}
            if len(formats) > 1:
                raise ContractError(f"{prefix}experts.*.{name}", "one format for all experts", sorted(formats))
        return ExpertsRequests(
            router=matmul(prefix + "router", False, "f32"),
            route=Request(MoERouteSpec(mixture.num_experts, mixture.top_k, mixture.renormalize, "f32"), bounds=step),
            sort=Request(MoESortSpec(mixture.num_experts, mixture.top_k), bounds=step),
            take=Request(TakeRowsSpec(config.hidden_size, dtype), bounds=choices),
            gate_up=tuple(map(grouped, joined(first, ("gate_proj", "up_proj")))),
            silu_mul=Request(SiluMulSpec(config.intermediate_size, dtype), bounds=choices),
            down_proj=grouped(("down_proj",)).request,
            combine=Request(MoECombineSpec(config.hidden_size, mixture.top_k, dtype), bounds=step),
        )

    def layer(i: int) -> LayerRequests:
        prefix = f"layers.{i}."
        return LayerRequests(
            attn_norm=norm(residual=i > 0),  # the first layer's input is the residual stream itself
            qkv=projections(prefix, ("q_proj", "k_proj", "v_proj"), config.qkv_bias),
            q_norm=head_norm(config.num_q_heads),
            k_norm=head_norm(config.num_kv_heads),
            q_rope=rope(config.num_q_heads),
            k_rope=rope(config.num_kv_heads),
            mixed=over_cache(config.window(i), mixed),
            decode=over_cache(config.window(i), decode),
            o_proj=matmul(prefix + "o_proj", config.o_bias),
            mlp_norm=norm(residual=True),
            feed_forward=mlp(prefix) if config.experts is None else experts(prefix, config.experts),
        )

    vocab, hidden = shapes["embed_tokens"]
    return DecoderRequests(
        embedding=Request(EmbeddingSpec(format_of("embed_tokens"), vocab, hidden, dtype), bounds=step),
        layers=tuple(layer(i) for i in range(config.num_layers)),
        norm=norm(residual=True),
        take_attended=Request(TakeRowsSpec(config.num_q_heads * config.head_dim, dtype), bounds=step),
        take_residual=Request(TakeRowsSpec(hidden, dtype), bounds=step),
        lm_head=matmul("lm_head", False, "f32", sequences),
        argmax=Request(ArgmaxSpec(vocab), bounds=sequences),
        sample=Request(SampleSpec(vocab), bounds=sequences),
        copy_blocks=Request(CacheCopyBlocksSpec(), cache),
    )


def max_context(config: ModelConfig, options: EngineOptions, num_blocks: int) -> int:
    """The most tokens that one sequence may have: the model's limit, the caller's, and what the cache holds."""
    return min(config.max_position, options.max_context or config.max_position, num_blocks * options.block_size)


def _requests(value: Any) -> Iterator[Request]:
    if isinstance(value, Request):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _requests(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _requests(getattr(value, field.name))
