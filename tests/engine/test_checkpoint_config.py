"""config.json into ModelConfig: what transformers writes is read, and what is not built or makes no sense is named."""

from __future__ import annotations

import copy
import json
import math

import pytest
import transformers

from opsocket.operators import RopeScaling
from opsocket.operators.errors import ContractError, FormatError
from opsocket_engine.config import ModelConfig, RopeConfig
from opsocket_engine.huggingface.config import config_from_huggingface
from opsocket_engine.locate import HuggingFaceFolder

# As the models' authors published them, in the keys of transformers 4.
LLAMA_3_2_1B = {
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN2_5_05B = {
    "model_type": "qwen2",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B = QWEN2_5_05B | {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}


@pytest.fixture
def read(tmp_path):
    """Reads a config.json, and optionally a generation_config.json, through files on disk."""

    def read(config: dict, generation: dict | None = None) -> ModelConfig:
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "generation_config.json").write_text(json.dumps(generation or {}))
        files = HuggingFaceFolder("m", tmp_path)
        return config_from_huggingface(tmp_path, files.json("config.json"), files.json("generation_config.json"))

    return read


def test_llama_with_its_rope_scaling(read):
    config = read(LLAMA_3_2_1B)
    assert config == ModelConfig(
        architecture="llama",
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=128256,
        rms_norm_eps=1e-5,
        rope=RopeConfig(
            theta=500000.0,
            rotary_dim=64,
            scaling=RopeScaling("llama3", 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
        ),
        max_position=131072,
        tie_embeddings=True,
        bos_id=128000,
        eos_ids=(128001, 128008, 128009),
    )


def test_qwen2_has_biases_that_its_config_does_not_mention(read):
    config = read(QWEN2_5_05B)
    assert (config.architecture, config.qkv_bias, config.o_bias, config.qk_norm) == ("qwen2", True, False, False)
    assert (config.head_dim, config.rope, config.sliding_window) == (64, RopeConfig(1000000.0, 64), None)


def test_qwen2s_sliding_window_holds_above_its_first_layers(read):
    config = read(QWEN2_5_05B | {"use_sliding_window": True})
    assert (config.sliding_window, config.sliding_layers) == (32768, (21, 22, 23))
    assert (config.window(20), config.window(21)) == (None, 32768)


def test_qwen3_has_norms_on_q_and_k_and_heads_wider_than_its_hidden_size(read):
    config = read(QWEN3_06B)
    assert (config.qkv_bias, config.qk_norm, config.num_q_heads * config.head_dim) == (False, True, 2048)
    assert read({key: value for key, value in QWEN3_06B.items() if key != "head_dim"}).head_dim == 128


def test_the_generation_config_says_what_ends_a_generation(read):
    assert read(QWEN2_5_05B).eos_ids == (151645,)
    assert read(QWEN2_5_05B, {"eos_token_id": [151645, 151643]}).eos_ids == (151645, 151643)
    assert read(QWEN2_5_05B, {"eos_token_id": None}).eos_ids == (151645,)


@pytest.mark.parametrize(
    "theirs",
    [
        transformers.LlamaConfig(
            hidden_size=96, num_attention_heads=6, num_key_value_heads=2, attention_bias=True, mlp_bias=True
        ),
        transformers.LlamaConfig(
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 5e5,
                "factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        ),
        transformers.LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
        transformers.MistralConfig(sliding_window=64, head_dim=32, num_hidden_layers=3),
        transformers.MistralConfig(sliding_window=None),
        transformers.Qwen2Config(use_sliding_window=True, sliding_window=128, max_window_layers=3, num_hidden_layers=5),
        transformers.Qwen2Config(num_key_value_heads=4, tie_word_embeddings=True),
        transformers.Qwen3Config(hidden_size=128, num_hidden_layers=2, attention_bias=True),
        transformers.Qwen3Config(
            use_sliding_window=True,
            sliding_window=16,
            num_hidden_layers=2,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_what_transformers_5_writes_is_read_as_it_means_it(read, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours = read(json.loads((tmp_path / "config.json").read_text()))
    assert ours.hidden_size == theirs.hidden_size
    assert (ours.num_q_heads, ours.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.head_dim, ours.rope.rotary_dim, ours.rope.interleaved) == (head_dim, head_dim, False)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert (ours.rope.scaling.kind if ours.rope.scaling else "default") == theirs.rope_parameters["rope_type"]
    assert (ours.num_layers, ours.vocab_size) == (theirs.num_hidden_layers, theirs.vocab_size)
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.o_bias == getattr(theirs, "attention_bias", False)
    assert ours.mlp_bias == getattr(theirs, "mlp_bias", False)
    window = getattr(theirs, "sliding_window", None)
    types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * ours.num_layers
    want = [window if type == "sliding_attention" else None for type in types]
    assert [ours.window(layer) for layer in range(ours.num_layers)] == want


def test_yarn_scales_cosine_and_sine_by_its_own_rule_unless_told(read):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

    def scaling(**more) -> RopeScaling | None:
        return read(QWEN2_5_05B | {"rope_scaling": yarn | more}).rope.scaling

    assert scaling() == RopeScaling("yarn", 4.0, 32768, attention_factor=0.1 * math.log(4) + 1)
    assert scaling(attention_factor=1.5).attention_factor == 1.5
    assert scaling(mscale=1.0, mscale_all_dim=1.0).attention_factor == 1.0
    assert (scaling(beta_fast=16, beta_slow=2).beta_fast, scaling(beta_slow=2).beta_slow) == (16.0, 2.0)
    del yarn["original_max_position_embeddings"]
    assert scaling().original_max_position == 32768


@pytest.mark.parametrize(
    ("change", "where", "problem"),
    [
        (
            {"model_type": "lama"},
            "model_type",
            "wanted one of llama, mistral, qwen2, qwen3, mixtral, qwen3_moe, got 'lama'; the nearest is llama",
        ),
        ({"model_type": "mamba2"}, "model_type", "got 'mamba2'"),
        ({"model_type": None}, "model_type", "wanted a string, got nothing"),
        ({"hidden_act": "gelu"}, "hidden_act", "wanted 'silu', got 'gelu'"),
        ({"hidden_size": None}, "hidden_size", "wanted an integer, got nothing"),
        ({"hidden_size": -5}, "hidden_size", "wanted an integer in 1..1048576, got -5"),
        ({"hidden_size": 2048.0}, "hidden_size", "got 2048.0"),
        ({"hidden_size": True}, "hidden_size", "got True"),
        ({"hidden_size": 10**15}, "hidden_size", "got 1000000000000000"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers", "wanted an integer in 1..4096"),
        ({"vocab_size": 0}, "vocab_size", "got 0"),
        ({"num_key_value_heads": 5}, "num_kv_heads", "wanted a divisor of num_q_heads=32, got 5"),
        ({"num_attention_heads": 24, "head_dim": None}, "num_attention_heads", "wanted a divisor of 2048, got 24"),
        ({"head_dim": 63}, "rope.rotary_dim", "wanted an even number, got 63"),
        ({"head_dim": 4096, "num_attention_heads": 16384}, "num_q_heads * head_dim", "got 67108864"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps", "wanted a number in 0..1, got 'tiny'"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps", "got nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings", "wanted true or false, got 1"),
        ({"eos_token_id": 128256}, "eos_token_id", "wanted token ids below 128256, got 128256"),
        ({"eos_token_id": ["a"]}, "eos_token_id", "got 'a'"),
        ({"bos_token_id": -1}, "bos_token_id", "got -1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "not built"),
        ({"rope_theta": 0}, "rope_theta", "got 0"),
        ({"rope_scaling": [1]}, "rope_scaling", "wanted a mapping, got [1]"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type", "got 'longrope'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type", "got 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor", "wanted a number, got nothing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": math.inf}}, "rope_scaling.factor", "got inf"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "rope_scaling.high_freq_factor",
            "wanted more than low_freq_factor=4, got 4",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}}, "rope_scaling.truncate", "not built"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention", "another rotary embedding"),
        ({"layer_types": ["sliding_attention"] * 16}, "layer_types", "without a sliding window in use"),
        ({"layer_types": ["full_attention"]}, "layer_types", "wanted a list of 16"),
        ({"layer_types": ["linear_attention"] * 16}, "layer_types", "got 'linear_attention'"),
    ],
)
def test_a_config_that_is_not_built_or_makes_no_sense_is_refused_by_its_key(read, change, where, problem):
    with pytest.raises(FormatError) as caught:
        read(copy.deepcopy(LLAMA_3_2_1B) | change)
    assert caught.value.where == where
    assert problem in caught.value.problem
    assert caught.value.path.endswith("config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"model_type": "\udcff"}', "\x00"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match="JSON"):
        HuggingFaceFolder("m", tmp_path).json("config.json")


def test_a_config_made_in_code_is_checked_too(read):
    config = read(QWEN3_06B)
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    for change, field in [
        ({"architecture": "gpt2"}, "architecture"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"sliding_window": 5}, "sliding_layers"),
        ({"sliding_layers": (99,), "sliding_window": 5}, "sliding_layers"),
        ({"eos_ids": (10**9,)}, "eos_ids and bos_id"),
    ]:
        with pytest.raises(ContractError) as caught:
            ModelConfig(**fields | change)
        assert caught.value.argument == field
    assert hash(config) == hash(read(QWEN3_06B)), "a configuration is hashable data"
