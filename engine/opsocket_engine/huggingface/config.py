"""`ModelConfig` from a Hugging Face folder's config.json and generation_config.json.

Keys and defaults as in transformers' configuration classes, of version 4 (rope_theta, rope_scaling) and of version 5
(rope_parameters).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsocket.operators import RopeScaling
from opsocket.operators.errors import ContractError, FormatError
from opsocket_engine.config import (
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITION,
    MAX_VOCAB,
    MAX_WIDTH,
    Architecture,
    ExpertsConfig,
    ModelConfig,
    RopeConfig,
)
from opsocket_engine.keys import Keys


@dataclass(frozen=True)
class _ExpertsKeys:
    """How a family's config.json says what its experts are: the keys of their number, of which one is there, and that
    of their width. top_k: where no key says it. renormalize: None where a key does."""

    num_experts: tuple[str, ...]
    top_k: int
    intermediate_size: str
    renormalize: bool | None = None


@dataclass(frozen=True)
class _Family:
    """What a model_type fixes without saying it in config.json."""

    architecture: Architecture
    qkv_bias: bool | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    window_in_every_layer: bool = False
    experts: _ExpertsKeys | None = None


_FAMILIES = {
    "llama": _Family("llama"),
    "mistral": _Family("llama", qkv_bias=False, window_in_every_layer=True),
    "qwen2": _Family("qwen2", qkv_bias=True),
    "qwen3": _Family("qwen3", head_dim=128, qk_norm=True),
    "mixtral": _Family(
        "llama",
        qkv_bias=False,
        window_in_every_layer=True,
        experts=_ExpertsKeys(("num_local_experts",), 2, "intermediate_size", renormalize=True),
    ),
    # Version 5 of transformers writes num_local_experts, version 4 num_experts.
    "qwen3_moe": _Family(
        "qwen3moe", qk_norm=True, experts=_ExpertsKeys(("num_experts", "num_local_experts"), 8, "moe_intermediate_size")
    ),
}


def config_from_huggingface(folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """The model's configuration, from the two files' contents (`generation` may be empty).

    Ends of generation are config.json's, or generation_config.json's where it names any, since that is what the model's
    author generates with. FormatError names the key that is missing, unsupported or inconsistent.
    """
    path = folder / "config.json"
    keys = Keys(path, config)
    model_type = keys.text("model_type")
    family = _FAMILIES.get(model_type)
    if family is None:
        near = difflib.get_close_matches(model_type, _FAMILIES, n=1)
        known = f"wanted one of {', '.join(_FAMILIES)}, got {model_type!r}"
        raise keys.wrong("model_type", known + (f"; the nearest is {near[0]}" if near else ""))
    keys.only("hidden_act", "silu", "another activation")

    hidden_size = keys.integer("hidden_size", 1, MAX_WIDTH)
    num_q_heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    num_layers = keys.integer("num_hidden_layers", 1, MAX_LAYERS)
    vocab_size = keys.integer("vocab_size", 1, MAX_VOCAB)
    max_position = keys.integer("max_position_embeddings", 1, MAX_POSITION)
    head_dim = keys.integer("head_dim", 1, MAX_HEAD_DIM, family.head_dim)
    if head_dim is None:
        if hidden_size % num_q_heads:
            raise keys.wrong("num_attention_heads", f"wanted a divisor of {hidden_size}, got {num_q_heads}")
        head_dim = hidden_size // num_q_heads
    # Qwen2 puts biases on q, k and v, and reads no key; the others' key covers q, k, v and o alike.
    attention_bias = False if family.qkv_bias is not None else keys.flag("attention_bias", False)
    window, layers = _sliding_window(keys, family, num_layers)
    width = "intermediate_size" if family.experts is None else family.experts.intermediate_size
    try:
        return ModelConfig(
            architecture=family.architecture,
            hidden_size=hidden_size,
            intermediate_size=keys.integer(width, 1, MAX_WIDTH),
            num_layers=num_layers,
            num_q_heads=num_q_heads,
            num_kv_heads=keys.integer("num_key_value_heads", 1, MAX_HEADS, num_q_heads),
            head_dim=head_dim,
            vocab_size=vocab_size,
            rms_norm_eps=keys.number("rms_norm_eps", 0.0, 1.0, 1e-6),
            rope=_rope(keys, head_dim, max_position),
            max_position=max_position,
            tie_embeddings=keys.flag("tie_word_embeddings", False),
            qkv_bias=attention_bias or bool(family.qkv_bias),
            o_bias=attention_bias,
            mlp_bias=family.architecture == "llama" and keys.flag("mlp_bias", False),
            qk_norm=family.qk_norm,
            sliding_window=window,
            sliding_layers=layers,
            experts=None if family.experts is None else _experts(keys, family.experts),
            bos_id=keys.integer("bos_token_id", 0, vocab_size - 1, None),
            eos_ids=_eos(Keys(folder / "generation_config.json", generation), vocab_size) or _eos(keys, vocab_size),
        )
    except ContractError as error:
        raise FormatError(path, error.argument, f"wanted {error.want}, got {error.got}") from None


def _experts(keys: Keys, known: _ExpertsKeys) -> ExpertsConfig:
    keys.only("decoder_sparse_step", 1, "layers without experts")
    keys.only("mlp_only_layers", [], "layers without experts")
    name = next((name for name in known.num_experts if keys.get(name) is not None), known.num_experts[0])
    count = keys.integer(name, 1, MAX_EXPERTS)
    top_k = keys.integer("num_experts_per_tok", 1, count, known.top_k)
    renormalize = keys.flag("norm_topk_prob", False) if known.renormalize is None else known.renormalize
    return ExpertsConfig(count, top_k, renormalize)


def _eos(keys: Keys, vocab_size: int) -> tuple[int, ...]:
    value = keys.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for id in ids:
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < vocab_size:
            raise keys.wrong("eos_token_id", f"wanted token ids below {vocab_size}, got {id!r}")
    return tuple(dict.fromkeys(ids))


def _sliding_window(keys: Keys, family: _Family, num_layers: int) -> tuple[int | None, tuple[int, ...]]:
    types = keys.get("layer_types")
    listed: tuple[int, ...] | None = None
    if types is not None:
        if not isinstance(types, list) or len(types) != num_layers:
            raise keys.wrong("layer_types", f"wanted a list of {num_layers}, one for each layer")
        for type in types:
            if type not in ("full_attention", "sliding_attention"):
                raise keys.wrong("layer_types", f"wanted full_attention or sliding_attention, got {type!r}")
        listed = tuple(layer for layer, type in enumerate(types) if type == "sliding_attention")
    if family.window_in_every_layer:
        window = keys.integer("sliding_window", 1, MAX_POSITION, None)
        layers = tuple(range(num_layers)) if listed is None else listed
    elif family.architecture != "llama" and keys.flag("use_sliding_window", False):
        window = keys.integer("sliding_window", 1, MAX_POSITION, None)
        first = keys.integer("max_window_layers", 0, MAX_LAYERS, 28)
        layers = tuple(range(first, num_layers)) if listed is None else listed
    elif listed:
        raise keys.wrong("layer_types", "sliding_attention without a sliding window in use")
    else:
        return None, ()
    return (window, layers) if window is not None and layers else (None, ())


def _rope(keys: Keys, head_dim: int, max_position: int) -> RopeConfig:
    # Version 5 writes rope_parameters; version 4 wrote rope_scaling, null where there is none.
    parameters = keys.section("rope_parameters") or keys.section("rope_scaling") or Keys(keys.path, {})
    theta = parameters.number("rope_theta", 1e-3, 1e15, keys.number("rope_theta", 1e-3, 1e15, 10000.0))
    for section in (keys, parameters):
        section.only("partial_rotary_factor", 1.0, "not built")
    return RopeConfig(theta=theta, rotary_dim=head_dim, scaling=_scaling(parameters, keys, max_position))


def _scaling(parameters: Keys, keys: Keys, max_position: int) -> RopeScaling | None:
    name = "rope_type" if parameters.get("rope_type") is not None else "type"
    kind = parameters.text(name, "default")
    for section in ("full_attention", "sliding_attention"):
        parameters.only(section, None, "another rotary embedding for some layers")
    if kind == "default":
        parameters.only("mrope_section", None, "not built")
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise parameters.wrong(name, f"wanted default, linear, llama3 or yarn, got {kind!r}")
    factor = parameters.number("factor", 1e-3, 1e6)
    if kind == "linear":
        return RopeScaling("linear", factor)
    inner = parameters.integer("original_max_position_embeddings", 1, MAX_POSITION, max_position)
    original = keys.integer("original_max_position_embeddings", 1, MAX_POSITION, inner)
    if kind == "llama3":
        low = parameters.number("low_freq_factor", 1e-3, 1e6)
        high = parameters.number("high_freq_factor", 1e-3, 1e6)
        if low >= high:
            raise parameters.wrong("high_freq_factor", f"wanted more than low_freq_factor={low:g}, got {high:g}")
        return RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    parameters.only("truncate", True, "not built")
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=parameters.number("beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=parameters.number("beta_slow", 1e-3, 1e6, 1.0),
        attention_factor=_yarn_attention_factor(parameters, factor),
    )


def _yarn_attention_factor(parameters: Keys, factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = parameters.number("attention_factor", 1e-3, 1e3, None)
    if given is not None:
        return given
    # DeepSeek's pair of weights; one alone says nothing.
    one, all = parameters.number("mscale", 0.0, 1e3, 0.0), parameters.number("mscale_all_dim", 0.0, 1e3, 0.0)
    return magnitude(one) / magnitude(all) if one and all else magnitude(1.0)
