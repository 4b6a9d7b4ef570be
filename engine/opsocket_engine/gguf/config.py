"""`ModelConfig` from a GGUF file's metadata.

Keys and defaults as in the GGUF specification and llama.cpp, whose converter writes these files.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from opsocket.operators import RopeScaling
from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization.gguf_file import GGUFTensor
from opsocket_engine.config import (
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITION,
    MAX_WIDTH,
    Architecture,
    ExpertsConfig,
    ModelConfig,
    RopeConfig,
)
from opsocket_engine.keys import Keys

# llama.cpp's converter reorders the rows of q and k for rotation of neighbouring channels in this architecture alone.
_INTERLEAVED: dict[str, bool] = {"llama": True, "qwen2": False, "qwen3": False, "qwen3moe": False}

# Of these architectures, what their files call a mixture is one in every layer, whose weights are renormalized.
_MIXTURES = ("llama", "qwen3moe")

# A model ends its turn with any of these, and most files name only one of them as their end of sequence.
_END_OF_GENERATION = frozenset({"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>"})

_CONTROL = 3

# Where one of these is set, the model computes something else than ModelConfig can say.
_NEUTRAL = {
    "expert_shared_count": 0,
    "expert_group_count": 0,
    "expert_gating_func": 1,  # softmax
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "leading_dense_block_count": 0,
    "interleave_moe_layer_step": 1,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.causal": True,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "use_parallel_residual": False,
}


def config_from_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, GGUFTensor]) -> ModelConfig:
    """The model's configuration. FormatError names the key that is missing, unsupported or inconsistent.

    GGUF has no keys for biases and tied embeddings: the file's own list of tensors says whether there are any.
    """
    general = Keys(path, metadata)
    architecture = general.text("general.architecture")
    if architecture not in _INTERLEAVED:
        near = difflib.get_close_matches(architecture, _INTERLEAVED, n=1)
        known = f"wanted one of {', '.join(_INTERLEAVED)}, got {architecture!r}"
        raise general.wrong("general.architecture", known + (f"; the nearest is {near[0]}" if near else ""))
    general.only("split.count", 1, "a model split over several files")
    keys = Keys(path, metadata, f"{architecture}.")
    for key, neutral in _NEUTRAL.items():
        keys.only(key, neutral, "not built")

    hidden_size = keys.integer("embedding_length", 1, MAX_WIDTH)
    num_q_heads = keys.integer("attention.head_count", 1, MAX_HEADS)
    num_layers = keys.integer("block_count", 1, MAX_LAYERS)
    head_dim = keys.integer("attention.key_length", 1, MAX_HEAD_DIM, None)
    if head_dim is None:
        if hidden_size % num_q_heads:
            raise keys.wrong("attention.head_count", f"wanted a divisor of {hidden_size}, got {num_q_heads}")
        head_dim = hidden_size // num_q_heads
    keys.only("attention.value_length", head_dim, "values of another size than keys")
    window, experts = _sliding_window(keys, architecture), _experts(keys, architecture)
    vocab_size = _vocab_size(general, keys, tensors)
    bos_id, eos_ids = _special_ids(general, vocab_size)
    try:
        return ModelConfig(
            architecture=cast(Architecture, architecture),
            hidden_size=hidden_size,
            intermediate_size=_intermediate_size(keys, architecture),
            num_layers=num_layers,
            num_q_heads=num_q_heads,
            num_kv_heads=keys.integer("attention.head_count_kv", 1, MAX_HEADS, num_q_heads),
            head_dim=head_dim,
            vocab_size=vocab_size,
            rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
            rope=_rope(keys, architecture, head_dim, tensors),
            max_position=keys.integer("context_length", 1, MAX_POSITION),
            tie_embeddings="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            o_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_down.bias" in tensors,
            qk_norm="blk.0.attn_q_norm.weight" in tensors,
            sliding_window=window,
            sliding_layers=tuple(range(num_layers)) if window else (),
            experts=experts,
            bos_id=bos_id,
            eos_ids=eos_ids,
        )
    except ContractError as error:
        raise FormatError(path, f"metadata ({error.argument})", f"wanted {error.want}, got {error.got}") from None


def _vocab_size(general: Keys, keys: Keys, tensors: Mapping[str, GGUFTensor]) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(keys.path, "token_embd.weight", "no such tensor")
    rows = int(embedding.shape[0])
    keys.only("vocab_size", rows, "not the number of rows of token_embd.weight")
    tokens = general.items("tokenizer.ggml.tokens", (str,), [])
    if len(tokens) > rows:
        problem = f"wanted at most {rows}, the rows of token_embd.weight, got {len(tokens)}"
        raise general.wrong("tokenizer.ggml.tokens", problem)
    return rows


def _sliding_window(keys: Keys, architecture: str) -> int | None:
    if architecture != "llama":
        keys.only("attention.sliding_window", 0, "in which layers it holds is not said")
    return keys.integer("attention.sliding_window", 0, MAX_POSITION, 0) or None


def _experts(keys: Keys, architecture: str) -> ExpertsConfig | None:
    if architecture not in _MIXTURES:
        keys.only("expert_count", 0, "not built")
        return None
    count = keys.integer("expert_count", 0, MAX_EXPERTS, 0)
    if not count:
        if architecture == "qwen3moe":
            raise keys.wrong("expert_count", f"wanted an integer in 1..{MAX_EXPERTS}, got {keys.get('expert_count')!r}")
        return None
    return ExpertsConfig(count, keys.integer("expert_used_count", 1, count), renormalize=True)


def _intermediate_size(keys: Keys, architecture: str) -> int:
    # Beside its experts' a qwen3moe file states the width of MLPs that none of its layers has.
    name = "expert_feed_forward_length" if architecture == "qwen3moe" else "feed_forward_length"
    return keys.integer(name, 1, MAX_WIDTH)


def _special_ids(general: Keys, vocab_size: int) -> tuple[int | None, tuple[int, ...]]:
    def token(name: str) -> int | None:
        return general.integer(f"tokenizer.ggml.{name}_token_id", 0, vocab_size - 1, None)

    found = [token(name) for name in ("eos", "eot", "eom")]
    tokens = general.items("tokenizer.ggml.tokens", (str,), [])
    types = general.items("tokenizer.ggml.token_type", (int,), [])
    for id, (text, type) in enumerate(zip(tokens, types, strict=False)):
        if type == _CONTROL and text in _END_OF_GENERATION:
            found.append(id)
    return token("bos"), tuple(dict.fromkeys(id for id in found if id is not None))


def _rope(keys: Keys, architecture: str, head_dim: int, tensors: Mapping[str, GGUFTensor]) -> RopeConfig:
    rotary_dim = keys.integer("rope.dimension_count", 2, head_dim, head_dim)
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in tensors:
            raise FormatError(keys.path, name, "longrope scaling is not built")
    scaling = _scaling(keys)
    factors: tuple[float, ...] = ()
    if (tensor := tensors.get("rope_freqs.weight")) is not None:
        if scaling is not None:
            raise FormatError(keys.path, "rope_freqs.weight", f"frequency factors beside {scaling.kind} scaling")
        if tensor.shape != (rotary_dim // 2,):
            problem = f"wanted shape ({rotary_dim // 2},), got {tuple(tensor.shape)}"
            raise FormatError(keys.path, "rope_freqs.weight", problem)
        factors = tuple(float(factor) for factor in np.asarray(tensor.array(), np.float64))
    return RopeConfig(
        theta=keys.number("rope.freq_base", 1e-3, 1e15, 10000.0),
        rotary_dim=rotary_dim,
        interleaved=_INTERLEAVED[architecture],
        scaling=scaling,
        frequency_factors=factors,
    )


def _scaling(keys: Keys) -> RopeScaling | None:
    kind = keys.text("rope.scaling.type", "none")
    # Files from before rope.scaling.type say the factor of a linear scaling, and nothing else.
    legacy = keys.number("rope.scale_linear", 1e-3, 1e6, 1.0)
    if kind == "none" and legacy != 1.0:
        return RopeScaling("linear", legacy)
    if kind == "none":
        return None
    factor = keys.number("rope.scaling.factor", 1e-3, 1e6)
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise keys.wrong("rope.scaling.type", f"wanted none, linear or yarn, got {kind!r}")
    keys.only("rope.scaling.yarn_log_multiplier", 0.0, "not built")
    keys.only("rope.scaling.yarn_ext_factor", 1.0, "not built")
    keys.only("rope.scaling.yarn_attn_factor", 1.0, "not built")
    return RopeScaling(
        "yarn",
        factor,
        original_max_position=keys.integer("rope.scaling.original_context_length", 1, MAX_POSITION),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
        attention_factor=keys.number("rope.scaling.attn_factor", 1e-3, 1e3, 1.0) * (0.1 * math.log(factor) + 1.0),
    )
