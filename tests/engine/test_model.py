"""Logits against transformers: every family and every flag of a configuration, on small random models."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket_engine.checkpoint import open_checkpoint
from opsocket_engine.locate import locate

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,  # not hidden_size / heads
    "vocab_size": 131,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def rope(kind: str, **parameters: float) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}

CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama, tied, all biases": transformers.LlamaConfig(
        **(SIZES | {"tie_word_embeddings": True}), attention_bias=True, mlp_bias=True
    ),
    "llama, one KV head": transformers.LlamaConfig(**(SIZES | {"num_key_value_heads": 1})),
    "llama, as many KV heads": transformers.LlamaConfig(**(SIZES | {"num_key_value_heads": 6, "head_dim": 16})),
    "llama, linear": transformers.LlamaConfig(**SIZES, **rope("linear", factor=3.0)),
    "llama, llama3": transformers.LlamaConfig(**SIZES, **rope("llama3", **LLAMA3)),
    "llama, yarn": transformers.LlamaConfig(**SIZES, **rope("yarn", **YARN)),
    "mistral, window": transformers.MistralConfig(**SIZES, sliding_window=9),
    "qwen2": transformers.Qwen2Config(**(SIZES | {"head_dim": 16})),
    "qwen2, tied": transformers.Qwen2Config(**(SIZES | {"head_dim": 16, "tie_word_embeddings": True})),
    "qwen2, window in some layers": transformers.Qwen2Config(
        **(SIZES | {"head_dim": 16}), use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**SIZES),
    "qwen3, yarn": transformers.Qwen3Config(**SIZES, **rope("yarn", **YARN)),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2),
    "mixtral, window": transformers.MixtralConfig(
        **SIZES, num_local_experts=3, num_experts_per_tok=3, sliding_window=9
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SIZES, num_experts=11, num_experts_per_tok=4, moe_intermediate_size=56, norm_topk_prob=False
    ),
    "qwen3_moe, renormalized": transformers.Qwen3MoeConfig(
        **SIZES, num_experts=8, num_experts_per_tok=1, moe_intermediate_size=72, norm_topk_prob=True
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(
    name, session, save_transformers, transformers_logits, engine_logits, tmp_path, record_property
):
    model = save_transformers(CONFIGS[name], tmp_path)
    checkpoint = open_checkpoint(locate(str(tmp_path)))
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, SIZES["vocab_size"], length).tolist() for length in (1, 40, 17)]
    worst = 0.0
    for got, prompt in zip(engine_logits(session, checkpoint, prompts), prompts, strict=True):
        want = transformers_logits(model, prompt)
        assert want.std() > 0.3, "logits that say something"
        worst = max(worst, float(np.abs(got - want).max()))
    record_property("max_abs_difference", worst)
    assert worst < 5e-5
