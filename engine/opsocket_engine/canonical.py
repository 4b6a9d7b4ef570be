"""The engine's one set of weight names, and the shape that each must have.

Matrices are [out, in], vectors [length]. Of the model: embed_tokens and lm_head [vocab, hidden], norm [hidden]; with
tied embeddings there is no lm_head. Of each layer, after `layers.{i}.`::

    attn_norm [hidden]          q_proj [q_heads * head_dim, hidden]     q_norm, k_norm [head_dim]
    mlp_norm [hidden]           k_proj, v_proj [kv_heads * head_dim, hidden]
    gate_proj, up_proj [intermediate, hidden]                           o_proj [hidden, q_heads * head_dim]
    down_proj [hidden, intermediate]                                    and {matrix}_bias [out], where the model has it

With experts, each layer has router [num_experts, hidden], and in place of its own gate_proj, up_proj and down_proj
those of each expert e, after `experts.{e}.`.
"""

from __future__ import annotations

from collections.abc import Mapping

from opsocket.operators.errors import ContractError
from opsocket_engine.config import ModelConfig


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Canonical name -> (out, in) of every matrix that a model of this configuration has."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_q_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = {
        "q_proj": (q_width, hidden),
        "k_proj": (kv_width, hidden),
        "v_proj": (kv_width, hidden),
        "o_proj": (hidden, q_width),
    }
    mlp = {
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    if config.experts is None:
        layer |= mlp
    else:
        layer["router"] = (config.experts.num_experts, hidden)
        each = range(config.experts.num_experts)
        layer |= {f"experts.{e}.{name}": shape for e in each for name, shape in mlp.items()}
    shapes = {"embed_tokens": (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    if not config.tie_embeddings:
        shapes["lm_head"] = (config.vocab_size, hidden)
    return shapes


def vector_lengths(config: ModelConfig) -> dict[str, int]:
    """Canonical name -> length of every norm weight and bias that a model of this configuration has."""
    q_width, kv_width = config.num_q_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = {"attn_norm": config.hidden_size, "mlp_norm": config.hidden_size}
    if config.qkv_bias:
        layer |= {"q_proj_bias": q_width, "k_proj_bias": kv_width, "v_proj_bias": kv_width}
    if config.o_bias:
        layer["o_proj_bias"] = config.hidden_size
    if config.mlp_bias:
        layer |= {"gate_proj_bias": config.intermediate_size, "up_proj_bias": config.intermediate_size}
        layer["down_proj_bias"] = config.hidden_size
    if config.qk_norm:
        layer |= {"q_norm": config.head_dim, "k_norm": config.head_dim}
    lengths = {f"layers.{i}.{name}": length for i in range(config.num_layers) for name, length in layer.items()}
    return lengths | {"norm": config.hidden_size}


def check_name(name: str, shapes: Mapping[str, object], kind: str) -> None:
    """ContractError where `name` is not among this model's names of that kind."""
    if name not in shapes:
        examples = ", ".join(list(shapes)[:3])
        raise ContractError("name", f"one of this model's {kind}, such as {examples}", repr(name))
