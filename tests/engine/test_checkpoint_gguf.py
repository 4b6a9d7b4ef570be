"""GGUF files, written here from a transformers model as llama.cpp's converter would, and SmolLM2's own."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from opsocket.operators import RopeScaling
from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization import WeightTensor, dequantize, get_format, quantize
from opsocket_engine.canonical import matrix_shapes, vector_lengths
from opsocket_engine.checkpoint import Checkpoint, open_checkpoint
from opsocket_engine.config import ModelConfig, RopeConfig
from opsocket_engine.gguf.weights import gguf_name
from opsocket_engine.huggingface.weights import module_name
from opsocket_engine.locate import locate

HEADS, KV_HEADS = 4, 2
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
MODELS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
}
KEYS = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
}


def save(path, architecture: str, tensors: dict, keys: dict | None = None, general: dict | None = None) -> str:
    """A GGUF file of these tensors. keys: under the architecture, over `KEYS`; a None takes a key away."""
    writer = gguf.GGUFWriter(str(path), architecture)
    values = {f"{architecture}.{key}": value for key, value in (KEYS | (keys or {})).items()} | (general or {})
    for key, value in values.items():
        match value:
            case None:
                pass
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_int32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, tensor in tensors.items():
        array, type = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, array, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """The row order in which neighbouring rows rotate together, from the one in which the halves of a head do."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def converted(model, architecture: str) -> dict[str, np.ndarray]:
    """The model's tensors as llama.cpp's converter writes them: its names, and for llama q and k interleaved."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = {}
    for name in state:
        canonical = next(
            c for c in CANONICAL if f"{module_name(c)}.{'bias' if c.endswith('_bias') else 'weight'}" == name
        )
        array = state[name]
        if architecture == "llama" and ".q_proj" in canonical:
            array = interleave(array, HEADS)
        if architecture == "llama" and ".k_proj" in canonical:
            array = interleave(array, KV_HEADS)
        tensors[gguf_name(canonical)] = array
    return tensors


EVERYTHING = ModelConfig(
    "llama", 64, 128, 2, HEADS, KV_HEADS, 16, 96, 1e-6, RopeConfig(1e4, 16), 128, False, True, True, True, True
)
CANONICAL = [*matrix_shapes(EVERYTHING), *vector_lengths(EVERYTHING)]


def build(architecture: str):
    model_class, config_class = MODELS[architecture]
    torch.manual_seed(0)
    more = {"head_dim": 16} if architecture == "qwen3" else {}
    model = model_class(config_class(**TINY | more))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return converted(build("llama"), "llama")


def open_file(path: str) -> Checkpoint:
    return open_checkpoint(locate(path))


def values(weight: WeightTensor) -> np.ndarray:
    return dequantize(weight.format, weight.tensors, weight.n, weight.k)


@pytest.mark.parametrize("architecture", MODELS)
def test_every_weight_of_a_converted_model_is_there_in_the_order_that_the_config_says(tmp_path, architecture):
    model = build(architecture)
    checkpoint = open_file(save(tmp_path / "m.gguf", architecture, converted(model, architecture)))
    config = checkpoint.config
    assert (config.architecture, config.rope.interleaved) == (architecture, architecture == "llama")
    assert (config.qkv_bias, config.qk_norm) == (architecture == "qwen2", architecture == "qwen3")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for name in matrix_shapes(config):
        want = state.pop(f"{module_name(name)}.weight")
        if config.rope.interleaved and name.endswith(("q_proj", "k_proj")):
            want = interleave(want, HEADS if name.endswith("q_proj") else KV_HEADS)
        assert np.array_equal(values(checkpoint.weight(name)), want)
    for name in vector_lengths(config):
        part = "bias" if name.endswith("_bias") else "weight"
        assert np.array_equal(checkpoint.vector(name), state.pop(f"{module_name(name)}.{part}"))
        assert checkpoint.has(name)
    assert not state


def test_the_conversion_above_is_the_fields(tmp_path):
    """transformers undoes llama.cpp's row order when it reads a file; it must arrive at the model we began with."""
    model = build("llama")
    keys = {"vocab_size": 96, "rope.dimension_count": 16}
    tokens = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [chr(0x100 + i) for i in range(96)],
        "tokenizer.ggml.merges": ["\u0100 \u0101"],
    }
    path = save(tmp_path / "m.gguf", "llama", converted(model, "llama"), keys, tokens)
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model, torch_dtype=torch.float32)["tensors"]
    for name, value in model.state_dict().items():
        assert torch.equal(theirs[name], value), name


def test_a_tied_model_reads_its_head_from_its_embedding(tmp_path, tensors):
    tied = {name: tensor for name, tensor in tensors.items() if name != "output.weight"}
    checkpoint = open_file(save(tmp_path / "m.gguf", "llama", tied))
    assert checkpoint.config.tie_embeddings
    assert not checkpoint.has("lm_head")
    assert np.array_equal(values(checkpoint.weight("lm_head")), tensors["token_embd.weight"])
    with pytest.raises(ContractError, match="one of this model's matrices"):
        checkpoint.weight("layers.0.attn_norm")


def test_matrices_may_be_quantized_and_vectors_may_not(tmp_path, tensors):
    def in_q8_0(name: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
        return gguf.quants.quantize(tensors[name], gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0

    mixed = tensors | {"blk.0.attn_q.weight": in_q8_0("blk.0.attn_q.weight")}
    mixed["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"].astype(np.float16)
    checkpoint = open_file(save(tmp_path / "m.gguf", "llama", mixed))
    formats = [checkpoint.weight(f"layers.0.{name}").format.id for name in ("q_proj", "up_proj", "k_proj")]
    assert formats == ["q8_0", "f16", "f32"]
    error = np.abs(values(checkpoint.weight("layers.0.q_proj")) - tensors["blk.0.attn_q.weight"]).max()
    assert 0 < error < 0.02
    broken = tensors | {"blk.1.ffn_norm.weight": (np.zeros(68, "u1"), gguf.GGMLQuantizationType.Q8_0)}
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_norm\.weight: wanted floats\[64\], got a quantized tensor"):
        open_file(save(tmp_path / "b.gguf", "llama", broken))


def test_a_file_of_many_formats_gives_the_logits_of_their_weights(
    tmp_path, session, engine_logits, transformers_llama, transformers_logits
):
    """Several formats in one file, as llama.cpp mixes them; projections of one input then are several products."""
    formats = {
        "attn_k": "iq4_xs", "attn_v": "q5_K", "attn_output": "q5_K", "ffn_gate": "iq4_nl", "ffn_up": "q5_1",
        "ffn_down": "q4_K", "token_embd": "q6_K", "output": "q6_K",
    }  # fmt: skip
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY | wide))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.06 if parameter.ndim == 2 else 1.0)
    quantized = {}
    for name, array in converted(model, "llama").items():
        if array.ndim == 2:
            weight_format = get_format(formats.get(name.split(".")[-2], "q3_K"))
            blocks = quantize(weight_format, array)["blocks"]
            quantized[name] = blocks, gguf.GGMLQuantizationType[weight_format.id.upper()]
        else:
            quantized[name] = array
    keys = {"block_count": 1, "embedding_length": 256, "feed_forward_length": 512}
    checkpoint = open_file(save(tmp_path / "m.gguf", "llama", quantized, keys))
    names = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    stored = [checkpoint.weight(f"layers.0.{name}").format.id for name in names]
    assert stored == ["q3_K", "iq4_xs", "q5_K", "iq4_nl", "q5_1", "q4_K"]
    for name in matrix_shapes(checkpoint.config):
        blocks, kind = quantized[gguf_name(name)]
        np.testing.assert_array_equal(values(checkpoint.weight(name)), gguf.quants.dequantize(blocks, kind))
    prompts = [np.random.default_rng(4).integers(0, 96, length).tolist() for length in (1, 19)]
    want = transformers_llama(checkpoint)
    for prompt, logits in zip(prompts, engine_logits(session, checkpoint, prompts), strict=True):
        theirs = transformers_logits(want, prompt)
        assert theirs.std() > 0.3
        assert np.abs(logits - theirs).max() < 5e-5 * max(1.0, theirs.std())


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({}, RopeConfig(1e4, 16, True)),
        ({"rope.freq_base": None, "rope.dimension_count": 8}, RopeConfig(1e4, 8, True)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 3.0}, RopeConfig(1e4, 16, True)),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            RopeConfig(1e4, 16, True, RopeScaling("linear", 4.0)),
        ),
        ({"rope.scale_linear": 2.0}, RopeConfig(1e4, 16, True, RopeScaling("linear", 2.0))),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            RopeConfig(1e4, 16, True, RopeScaling("yarn", 4.0, 64, attention_factor=0.1 * math.log(4.0) + 1.0)),
        ),
    ],
)
def test_rope_is_read_with_its_scaling(tmp_path, tensors, keys, rope):
    assert open_file(save(tmp_path / "m.gguf", "llama", tensors, keys)).config.rope == rope


def test_frequency_factors_become_part_of_the_config(tmp_path, tensors):
    factors = np.linspace(1, 32, 8, dtype=np.float32)
    config = open_file(save(tmp_path / "m.gguf", "llama", tensors | {"rope_freqs.weight": factors})).config
    assert config.rope.frequency_factors == tuple(map(float, factors))
    for broken, problem in [
        (factors[:7], r"wanted shape \(8,\), got \(7,\)"),
        (np.zeros(8, "f4"), "wanted a number in 1e-06"),
        (np.full(8, np.nan, "f4"), "got nan"),
    ]:
        with pytest.raises(FormatError, match=problem):
            open_file(save(tmp_path / "b.gguf", "llama", tensors | {"rope_freqs.weight": broken}))
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    with pytest.raises(FormatError, match="frequency factors beside linear scaling"):
        open_file(save(tmp_path / "b.gguf", "llama", tensors | {"rope_freqs.weight": factors}, linear))


def test_what_ends_a_generation_is_gathered_from_ids_and_from_control_tokens(tmp_path, tensors):
    tokens = [*(f"t{i}" for i in range(90)), "<|endoftext|>", "<|eot_id|>", "<|im_end|>"]
    general = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 90 + [3, 3, 1],
        "tokenizer.ggml.eos_token_id": 5,
        "tokenizer.ggml.eom_token_id": 7,
        "tokenizer.ggml.bos_token_id": 4,
    }
    config = open_file(save(tmp_path / "m.gguf", "llama", tensors, general=general)).config
    assert (config.bos_id, config.eos_ids) == (4, (5, 7, 90, 91)), "a normal token that looks like one is none"


def test_a_sliding_window_holds_in_every_layer_of_a_llama(tmp_path, tensors):
    config = open_file(save(tmp_path / "m.gguf", "llama", tensors, {"attention.sliding_window": 32})).config
    assert [config.window(layer) for layer in range(2)] == [32, 32]


@pytest.mark.parametrize(
    ("keys", "general", "where", "problem"),
    [
        ({"block_count": None}, {}, "llama.block_count", "wanted an integer, got nothing"),
        ({"block_count": 2.5}, {}, "llama.block_count", "got 2.5"),
        ({"block_count": [2, 2]}, {}, "llama.block_count", "got [2, 2]"),
        ({"embedding_length": -64}, {}, "llama.embedding_length", "got -64"),
        ({"attention.head_count": 5}, {}, "llama.attention.head_count", "wanted a divisor of 64, got 5"),
        ({"attention.head_count_kv": 3}, {}, "metadata (num_kv_heads)", "wanted a divisor of num_q_heads=4, got 3"),
        ({"attention.value_length": 8}, {}, "llama.attention.value_length", "wanted 16, got 8"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, {}, "llama.attention.layer_norm_rms_epsilon", "got nan"),
        ({"rope.dimension_count": 17}, {}, "llama.rope.dimension_count", "wanted an integer in 2..16"),
        ({"rope.dimension_count": 7}, {}, "metadata (rope.rotary_dim)", "wanted an even number"),
        (
            {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0},
            {},
            "llama.rope.scaling.type",
            "got 'longrope'",
        ),
        ({"rope.scaling.type": "linear"}, {}, "llama.rope.scaling.factor", "got nothing"),
        ({"expert_count": 8}, {}, "llama.expert_used_count", "wanted an integer, got nothing"),
        ({"attention.scale": 0.5}, {}, "llama.attention.scale", "wanted 0.0, got 0.5"),
        ({"vocab_size": 97}, {}, "llama.vocab_size", "wanted 96, got 97"),
        ({}, {"tokenizer.ggml.tokens": 5}, "tokenizer.ggml.tokens", "wanted a list of str, got 5"),
        ({}, {"split.count": 2}, "split.count", "several files"),
        ({}, {"tokenizer.ggml.tokens": ["t"] * 97}, "tokenizer.ggml.tokens", "wanted at most 96"),
        ({}, {"tokenizer.ggml.eos_token_id": 96}, "tokenizer.ggml.eos_token_id", "wanted an integer in 0..95"),
        ({"block_count": 3}, {}, "blk.2.attn_q.weight", "no such tensor; wanted shape (64, 64)"),
        ({"block_count": 1}, {}, "blk.1.", "has no use for"),
        ({"feed_forward_length": 96}, {}, "blk.0.ffn_gate.weight", "wanted shape (96, 64), got (128, 64)"),
    ],
)
def test_metadata_that_is_not_built_or_makes_no_sense_is_refused(tmp_path, tensors, keys, general, where, problem):
    with pytest.raises(FormatError) as caught:
        open_file(save(tmp_path / "m.gguf", "llama", tensors, keys, general))
    assert caught.value.where.startswith(where)
    assert problem in caught.value.problem
    assert caught.value.path.endswith("m.gguf")


def test_an_unknown_architecture_is_refused_with_the_nearest(tmp_path, tensors):
    with pytest.raises(
        FormatError, match="wanted one of llama, qwen2, qwen3, qwen3moe, got 'qwen2moe'; the nearest is qwen3moe"
    ):
        open_file(save(tmp_path / "m.gguf", "qwen2moe", tensors))


def test_a_bias_in_one_layer_only_is_refused(tmp_path, tensors):
    with pytest.raises(FormatError, match=r"blk\.1\.attn_q\.bias: a tensor that a llama model"):
        open_file(save(tmp_path / "m.gguf", "llama", tensors | {"blk.1.attn_q.bias": np.ones(64, "f4")}))
    with pytest.raises(FormatError, match=r"attn_k\.bias: no such tensor"):
        open_file(save(tmp_path / "m.gguf", "llama", tensors | {"blk.0.attn_q.bias": np.ones(64, "f4")}))
    with pytest.raises(FormatError, match=r"token_embd\.weight: no such tensor"):
        open_file(save(tmp_path / "m.gguf", "llama", {"output.weight": tensors["output.weight"]}))


def test_smollm2_opens_as_what_it_is():
    checkpoint = open_file("smollm2")
    config = checkpoint.config
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_q_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (9, 3, 64, 49152)
    assert config.rope == RopeConfig(100000.0, 64, interleaved=True)
    assert (config.tie_embeddings, config.bos_id, config.eos_ids) == (True, 1, (2, 0))
    formats = {name: checkpoint.weight(name).format.id for name in matrix_shapes(config)}
    assert formats.pop("embed_tokens") == "q8_0"
    assert set(formats.values()) == {"q4_1"}
    norm = checkpoint.vector("norm")
    assert norm.dtype == np.float32
    assert np.isfinite(norm).all()


@pytest.mark.model
@pytest.mark.slow
def test_smollm2s_weights_are_those_that_transformers_reads():
    files = locate("smollm2")
    checkpoint = open_checkpoint(files)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(
            transformers.AutoConfig.from_pretrained(files.path.parent, gguf_file=files.path.name)
        )
    theirs = load_gguf_checkpoint(str(files.path), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)[
        "tensors"
    ]
    for name in matrix_shapes(checkpoint.config):
        want = theirs[f"{module_name(name)}.weight"].numpy()
        if name.endswith(("q_proj", "k_proj")):
            want = interleave(want, 9 if name.endswith("q_proj") else 3)
        assert np.array_equal(values(checkpoint.weight(name)), want), name
    for name in vector_lengths(checkpoint.config):
        assert np.array_equal(checkpoint.vector(name), theirs[f"{module_name(name)}.weight"].numpy()), name
