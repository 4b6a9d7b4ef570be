"""Hugging Face folders, written by transformers or by hand from our quantizers, compared weight by weight."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization import WeightTensor, bf16_to_f32, dequantize, get_format, quantize
from opsocket_engine.canonical import matrix_shapes, vector_lengths
from opsocket_engine.checkpoint import Checkpoint, open_checkpoint
from opsocket_engine.huggingface.weights import module_name
from opsocket_engine.locate import HuggingFaceFolder, locate

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "llama_biased": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig,
        {"attention_bias": True, "mlp_bias": True},
    ),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 16}),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"head_dim": 32}),
    "tied": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"tie_word_embeddings": True}),
}


def build(name: str, dtype: torch.dtype = torch.float32):
    model_class, config_class, more = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**TINY | {"tie_word_embeddings": False} | more))
    for parameter in model.parameters():  # norms and biases are ones and zeros until trained
        parameter.data.normal_(std=0.5)
    return model.to(dtype)


def open_folder(path) -> Checkpoint:
    return open_checkpoint(HuggingFaceFolder("tiny", path))


def values(weight: WeightTensor) -> np.ndarray:
    return dequantize(weight.format, weight.tensors, weight.n, weight.k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_a_folder_by_transformers_is_there_and_equal(tmp_path, name, dtype):
    model = build(name, dtype)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(locate(str(tmp_path)))
    state = {key: value.float().numpy() for key, value in model.state_dict().items()}
    for canonical, (n, k) in matrix_shapes(checkpoint.config).items():
        weight = checkpoint.weight(canonical)
        assert (weight.n, weight.k) == (n, k)
        assert np.array_equal(values(weight), state.pop(f"{module_name(canonical)}.weight"))
        assert checkpoint.has(canonical)
    for canonical, length in vector_lengths(checkpoint.config).items():
        vector = checkpoint.vector(canonical)
        assert (vector.dtype, vector.shape) == (np.float32, (length,))
        part = "bias" if canonical.endswith("_bias") else "weight"
        assert np.array_equal(vector, state.pop(f"{module_name(canonical)}.{part}"))
    tied = checkpoint.config.tie_embeddings
    assert list(state) == (["lm_head.weight"] if tied else [])
    assert checkpoint.has("lm_head") != tied
    if tied:
        assert np.array_equal(values(checkpoint.weight("lm_head")), values(checkpoint.weight("embed_tokens")))


def test_a_model_in_several_files_is_one_model(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(locate(str(tmp_path)))
    want = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    assert np.array_equal(values(checkpoint.weight("layers.1.down_proj")), want)


def test_a_name_that_the_model_lacks_is_an_error_that_shows_the_names(tmp_path):
    build("llama").save_pretrained(tmp_path)
    checkpoint = open_folder(tmp_path)
    with pytest.raises(ContractError, match=r"one of this model's matrices, such as embed_tokens, layers\.0\.q_proj"):
        checkpoint.weight("layers.2.q_proj")
    with pytest.raises(ContractError, match="one of this model's vectors"):
        checkpoint.vector("layers.0.q_norm")
    assert not checkpoint.has("layers.0.q_proj_bias")


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path)
    return tmp_path


def load_file(path) -> dict[str, np.ndarray]:
    """A file's tensors; of 8-bit floats, which NumPy has not, a torch tensor."""
    return {
        name: tensor if tensor.dtype == torch.float8_e4m3fn else tensor.numpy()
        for name, tensor in load_torch_file(path).items()
    }


def save_file(tensors, path) -> None:
    def as_tensor(array):
        return array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))

    save_torch_file({name: as_tensor(array).contiguous() for name, array in tensors.items()}, path)


def rewrite(folder, change) -> None:
    """Change the folder's tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "where", "problem"),
    [
        (lambda t: t.pop(K_PROJ), K_PROJ, "no such tensor; wanted shape [32, 64]"),
        (lambda t: t.update({K_PROJ: t[K_PROJ][:16]}), K_PROJ, "wanted f32[32, 64], got f32[16, 64]"),
        (lambda t: t.update({K_PROJ: t[K_PROJ].astype(np.float64)}), K_PROJ, "wanted f32, f16 or bf16, got f64"),
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight", "no such tensor; wanted floats[64]"),
        (lambda t: t.update({"model.norm.weight": np.ones(63, "f4")}), "model.norm.weight", "got f32[63]"),
        (lambda t: t.update({"model.norm.weight": np.ones(64, "i4")}), "model.norm.weight", "got i32[64]"),
        (
            lambda t: t.update({"model.layers.0.mlp.extra": np.ones(2, "f4")}),
            "model.layers.0.mlp.extra",
            "has no use for",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(64, "f4")}),
            "model.layers.0.self_attn.q_proj.bias",
            "has no use for",
        ),
    ],
)
def test_a_tensor_that_is_missing_misshapen_or_too_many_is_named(folder, change, where, problem):
    rewrite(folder, change)
    with pytest.raises(FormatError) as caught:
        open_folder(folder)
    assert caught.value.where == where
    assert problem in caught.value.problem


def test_tensors_that_change_nothing_are_let_be(folder):
    zeros = {f"model.layers.{i}.mlp.up_proj.bias": np.zeros(128, "f2") for i in range(2)}
    rewrite(folder, lambda t: t.update(zeros | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, "f4")}))
    assert not open_folder(folder).has("layers.0.up_proj_bias")


# Quantized folders

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": INT8 | {"strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = FP8 | {"fmt": "e4m3", "weight_block_size": [128, 128]}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}


def compressed_floats(**weights) -> dict:
    activations = FLOAT8 | {"strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": FLOAT8 | weights, "input_activations": activations}
    return COMPRESSED | {"format": "float-quantized", "config_groups": {"group_0": group}}


QUANTIZED = [
    ("gptq_v1_i4_g32", GPTQ),
    ("gptq_v1_i4_g32", GPTQ | {"checkpoint_format": "gptq"}),
    ("gptq_v2_i4_g32", GPTQ | {"checkpoint_format": "gptq_v2"}),
    ("gptq_v1_i4_g32_act", GPTQ | {"desc_act": True}),
    ("gptq_v1_i4_g64", GPTQ | {"group_size": 64}),
    ("awq_i4_g32", AWQ),
    ("i8_channel_a8", COMPRESSED),
    ("f8e4m3fn_tensor", FP8),
    ("f8e4m3fn_128x128", BLOCKS),
    ("f8e4m3fn_tensor", compressed_floats(strategy="tensor")),
    ("f8e4m3fn_channel", compressed_floats(strategy="channel")),
    ("f8e4m3fn_128x128", compressed_floats(strategy="block", block_structure=[128, 128])),
]


def quantize_folder(folder, format_id: str, config: dict) -> dict[str, dict[str, np.ndarray]]:
    """Put every linear layer of the folder in that format; the tensors by module."""
    format = get_format(format_id)
    stored: dict[str, dict[str, np.ndarray]] = {}

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if "_proj.weight" in name]:
            module = name.removesuffix(".weight")
            stored[module] = quantize(format, tensors.pop(name))
            for part, array in stored[module].items():
                if part == "scale":
                    suffix = "_inv" if "weight_block_size" in config else ""
                    # compressed-tensors keeps a second dimension.
                    shape = (-1, 1) if format.block_n == 1 else array.shape
                    tensors[f"{module}.weight_scale{suffix}"] = array.reshape(shape)
                elif format.code == "f8e4m3fn":
                    tensors[f"{module}.{part}"] = torch.from_numpy(array).view(torch.float8_e4m3fn)
                else:
                    tensors[f"{module}.{part}"] = array
            if format_id.startswith("gptq") and "g_idx" not in stored[module]:
                k = stored[module]["qweight"].shape[0] * 8
                tensors[f"{module}.g_idx"] = (np.arange(k) // config["group_size"]).astype(np.int32)

    rewrite(folder, change)
    configure(folder, quantization_config=config)
    return stored


@pytest.mark.parametrize(("format_id", "config"), QUANTIZED, ids=[id for id, _ in QUANTIZED])
def test_a_quantized_folder_gives_its_weights_in_their_own_format(folder, format_id, config):
    original = load_file(folder / "model.safetensors")
    stored = quantize_folder(folder, format_id, config)
    checkpoint = open_folder(folder)
    for name, (n, k) in matrix_shapes(checkpoint.config).items():
        weight = checkpoint.weight(name)
        if name in ("embed_tokens", "lm_head"):
            assert weight.format.id == "f32"
            continue
        assert (weight.format.id, weight.n, weight.k) == (format_id, n, k)
        weight.format.validate(weight.tensors, n, k)
        want = dequantize(get_format(format_id), stored[module_name(name)], n, k)
        assert np.array_equal(values(weight), want)
        exact = original[f"{module_name(name)}.weight"]
        assert np.abs(values(weight) - exact).max() < 0.15 * np.abs(exact).max()


def test_groups_out_of_order_are_known_by_their_g_idx_whatever_the_config_says(folder):
    quantize_folder(folder, "gptq_v1_i4_g32_act", GPTQ | {"desc_act": True})
    g_idx = "model.layers.0.self_attn.q_proj.g_idx"
    rewrite(folder, lambda t: t.update({g_idx: t[g_idx][::-1].copy()}))
    configure(folder, quantization_config=GPTQ)
    assert open_folder(folder).weight("layers.0.q_proj").format.id == "gptq_v1_i4_g32_act"


@pytest.mark.parametrize(("format_id", "config"), [("gptq_v1_i4_g64", GPTQ), ("awq_i4_g64", AWQ)])
def test_one_group_for_a_whole_row_and_modules_that_stay_dense(folder, format_id, config):
    module = "model.layers.0.mlp.up_proj"

    def change(tensors: dict[str, np.ndarray]) -> None:
        quantized = quantize(get_format(format_id), tensors.pop(f"{module}.weight"))
        tensors.update({f"{module}.{part}": array for part, array in quantized.items()})

    rewrite(folder, change)
    configure(folder, quantization_config=config | {"group_size": -1})
    checkpoint = open_folder(folder)
    assert checkpoint.weight("layers.0.up_proj").format.id == format_id
    assert checkpoint.weight("layers.0.down_proj").format.id == "f32"


def test_int8_weights_without_activations_and_with_bf16_scales(folder):
    stored = quantize_folder(folder, "i8_channel", COMPRESSED)
    group = COMPRESSED["config_groups"]["group_0"] | {"input_activations": None}
    configure(folder, quantization_config=COMPRESSED | {"config_groups": {"group_0": group}})
    module = "model.layers.0.self_attn.q_proj"
    bits = (stored[module]["scale"].view(np.uint32) >> 16).astype(np.uint16)
    tensors = {name: torch.from_numpy(array) for name, array in load_file(folder / "model.safetensors").items()}
    tensors[f"{module}.weight_scale"] = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).reshape(-1, 1)
    save_torch_file(tensors, folder / "model.safetensors")
    weight = open_folder(folder).weight("layers.0.q_proj")
    assert weight.format.id == "i8_channel"
    assert np.array_equal(weight.tensors["scale"], bf16_to_f32(bits))


@pytest.mark.parametrize(
    ("config", "where", "problem"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "quantization_config.quant_method",
            "wanted gptq, awq, compressed-tensors or fp8",
        ),
        ({}, "quantization_config.quant_method", "wanted a string, got nothing"),
        (GPTQ | {"bits": 3}, "quantization_config.bits", "wanted 4, got 3"),
        (GPTQ | {"checkpoint_format": "marlin"}, "quantization_config.checkpoint_format", "got 'marlin'"),
        (GPTQ | {"group_size": 0}, "quantization_config.group_size", "got 0"),
        (GPTQ | {"dynamic": {"+:lm_head": {}}}, "quantization_config.dynamic", "differ between modules"),
        (AWQ | {"version": "gemv"}, "quantization_config.version", "wanted 'gemm', got 'gemv'"),
        (AWQ | {"zero_point": False}, "quantization_config.zero_point", "wanted True, got False"),
        (COMPRESSED | {"format": "pack-quantized"}, "quantization_config.format", "got 'pack-quantized'"),
        (COMPRESSED | {"format": 8}, "quantization_config.format", "wanted a string, got 8"),
        (BLOCKS | {"weight_block_size": [64, 128]}, "quantization_config.weight_block_size", "got [64, 128]"),
        (BLOCKS | {"weight_block_size": 128}, "quantization_config.weight_block_size", "got 128"),
        (BLOCKS | {"fmt": "e5m2"}, "quantization_config.fmt", "wanted 'e4m3', got 'e5m2'"),
        (FP8 | {"activation_scheme": "none"}, "quantization_config.activation_scheme", "wanted dynamic or static"),
        (
            compressed_floats(strategy="group"),
            "quantization_config.config_groups.group_0.weights.strategy",
            "wanted tensor, channel or block, got 'group'",
        ),
        (
            compressed_floats(strategy="block", block_structure=[1, 128]),
            "quantization_config.config_groups.group_0.weights.block_structure",
            "got [1, 128]",
        ),
        (
            compressed_floats(strategy="tensor", num_bits=4),
            "quantization_config.config_groups.group_0.weights.num_bits",
            "wanted 8, got 4",
        ),
        (COMPRESSED | {"config_groups": {}}, "quantization_config.config_groups", "wanted one group, got 0"),
        (
            COMPRESSED | {"config_groups": {"group_0": {"weights": INT8 | {"strategy": "tensor"}}}},
            "quantization_config.config_groups.group_0.weights.strategy",
            "wanted 'channel', got 'tensor'",
        ),
        (COMPRESSED | {"kv_cache_scheme": {"num_bits": 8}}, "quantization_config.kv_cache_scheme", "not built"),
    ],
)
def test_a_quantization_that_is_not_built_is_refused_by_its_key(folder, config, where, problem):
    configure(folder, quantization_config=config)
    with pytest.raises(FormatError) as caught:
        open_folder(folder)
    assert (caught.value.where, problem in caught.value.problem) == (where, True)


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "where", "problem"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.scales"), f"{Q_PROJ}.scales", "no such tensor; wanted f16[2, 64]"),
        (
            lambda t: t.update({f"{Q_PROJ}.scales": t[f"{Q_PROJ}.scales"].astype("f4")}),
            f"{Q_PROJ}.scales",
            "got f32[2, 64]",
        ),
        (lambda t: t.update({f"{Q_PROJ}.qweight": np.zeros((8, 8), "i4")}), f"{Q_PROJ}.qweight", "got i32[8, 8]"),
        (lambda t: t.update({f"{Q_PROJ}.g_idx": np.zeros(5, "i4")}), f"{Q_PROJ}.g_idx", "got i32[5]"),
    ],
)
def test_a_broken_part_of_a_quantized_matrix_is_named(folder, change, where, problem):
    quantize_folder(folder, "gptq_v1_i4_g32", GPTQ)
    rewrite(folder, change)
    with pytest.raises(FormatError) as caught:
        open_folder(folder)
    assert (caught.value.where, problem in caught.value.problem) == (where, True), str(caught.value)


@pytest.mark.parametrize(
    ("change", "where", "problem"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.weight_scale_inv"), f"{Q_PROJ}.weight", "wanted f32, f16 or bf16, got f8e4m3fn"),
        (lambda t: t.pop(f"{Q_PROJ}.weight"), f"{Q_PROJ}.weight", "no such tensor; wanted f8e4m3fn[64, 64]"),
        (
            lambda t: t.update({f"{Q_PROJ}.weight": np.zeros((64, 64), "i1")}),
            f"{Q_PROJ}.weight",
            "wanted f8e4m3fn[64, 64], got i8[64, 64]",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.weight_scale_inv": np.ones((2, 1), "f4")}),
            f"{Q_PROJ}.weight_scale_inv",
            "wanted f32[1, 1], got f32[2, 1]",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.weight_scale_inv": np.ones((1, 1), "i4")}),
            f"{Q_PROJ}.weight_scale_inv",
            "got i32[1, 1]",
        ),
        (lambda t: t.update({"model.norm.input_scale": np.ones(1, "f4")}), "model.norm.input_scale", "has no use for"),
    ],
)
def test_a_broken_part_of_a_matrix_of_8_bit_floats_is_named(folder, change, where, problem):
    quantize_folder(folder, "f8e4m3fn_128x128", BLOCKS)
    rewrite(folder, change)
    with pytest.raises(FormatError) as caught:
        open_folder(folder)
    assert (caught.value.where, problem in caught.value.problem) == (where, True), str(caught.value)


def test_scales_of_8_bit_floats_without_dimensions_or_in_bf16_and_static_activations(folder):
    stored = quantize_folder(folder, "f8e4m3fn_tensor", FP8 | {"activation_scheme": "static"})
    tensors = load_torch_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        tensors[name] = tensors[name].reshape(()).to(torch.bfloat16)
        tensors[name.removesuffix("weight_scale") + "input_scale"] = torch.tensor(0.5)
    save_torch_file(tensors, folder / "model.safetensors")
    weight = open_folder(folder).weight("layers.0.q_proj")
    assert weight.format.id == "f8e4m3fn_tensor"
    assert weight.tensors["scale"].shape == (1,)
    want = torch.from_numpy(stored[Q_PROJ]["scale"]).to(torch.bfloat16).float().numpy()
    assert np.array_equal(weight.tensors["scale"], want)


def test_desc_act_without_g_idx_is_refused(folder):
    quantize_folder(folder, "gptq_v1_i4_g32_act", GPTQ | {"desc_act": True})
    rewrite(folder, lambda t: t.pop(f"{Q_PROJ}.g_idx"))
    with pytest.raises(FormatError, match=r"q_proj\.g_idx: no such tensor"):
        open_folder(folder)


def test_a_group_size_that_does_not_divide_a_row_is_refused(folder):
    quantize_folder(folder, "gptq_v1_i4_g32", GPTQ)
    configure(folder, quantization_config=GPTQ | {"group_size": 48})
    with pytest.raises(FormatError, match="k: wanted a positive multiple of 48"):
        open_folder(folder)
    configure(folder, quantization_config=GPTQ | {"group_size": 20})
    with pytest.raises(FormatError, match="a group size that is a multiple of 16"):
        open_folder(folder)
