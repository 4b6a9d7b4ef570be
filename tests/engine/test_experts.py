"""Mixtures of experts: their files, their logits against transformers (with `test_model`), their steps by graphs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from mixture import write_mixture
from safetensors.torch import load_file, save_file

from opsocket.operators import DeviceInfo, SessionOptions
from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization import dequantize, get_format, quantize
from opsocket.quantization.gguf_file import open_gguf
from opsocket_cuda.backend import CudaBackend
from opsocket_engine.canonical import matrix_shapes, vector_lengths
from opsocket_engine.checkpoint import Checkpoint, open_checkpoint
from opsocket_engine.config import ExpertsConfig
from opsocket_engine.engine import Engine
from opsocket_engine.gguf.weights import gguf_name
from opsocket_engine.huggingface.weights import module_name
from opsocket_engine.locate import locate
from opsocket_engine.measure import stored_bytes
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.tokenizer import load_tokenizer
from opsocket_rocm.backend import RocmBackend

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 131,
    "max_position_embeddings": 128,
}
MIXTURES = {
    "llama": transformers.MixtralConfig(
        **SIZES, intermediate_size=64, num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=True
    ),
    "qwen3moe": transformers.Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=64, num_experts=9, num_experts_per_tok=3, norm_topk_prob=True
    ),
}
OPTIONS = EngineOptions(num_blocks=64, max_batch=6, max_step_tokens=64, replay_steps=1)
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    weight = checkpoint.weight(name)
    return dequantize(weight.format, weight.tensors, weight.n, weight.k)


def write_gguf(checkpoint: Checkpoint, architecture: str, path: Path, **changes: int | bool | None) -> Checkpoint:
    """As llama.cpp's converter writes the model: each projection of all experts of a layer is one tensor, and for llama
    rows of q and k that rotate together are neighbours."""
    config = checkpoint.config
    assert config.experts is not None
    width = "expert_feed_forward_length" if architecture == "qwen3moe" else "feed_forward_length"
    keys = {
        "block_count": config.num_layers, "context_length": 128, "embedding_length": config.hidden_size,
        "attention.head_count": config.num_q_heads, "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
        width: config.intermediate_size, "expert_count": config.experts.num_experts,
        "expert_used_count": config.experts.top_k,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (keys | changes).items():
        if isinstance(value, bool):
            writer.add_bool(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope.theta)
    tensors: dict[str, list[np.ndarray]] = {}
    for name in matrix_shapes(config):
        array = values(checkpoint, name)
        if architecture == "llama" and name.endswith(("q_proj", "k_proj")):
            heads = config.num_q_heads if name.endswith("q_proj") else config.num_kv_heads
            array = array.reshape(heads, 2, -1, config.hidden_size).swapaxes(1, 2).reshape(array.shape)
        tensors.setdefault(gguf_name(name), []).append(array)
    for name in vector_lengths(config):
        tensors[gguf_name(name)] = [checkpoint.vector(name)]
    for name, arrays in tensors.items():
        writer.add_tensor(name, np.stack(arrays) if "_exps" in name else arrays[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_checkpoint(locate(str(path)))


@pytest.fixture(params=MIXTURES)
def mixture(request, tmp_path, save_transformers):
    """(architecture, transformers' model, its folder as a checkpoint)."""
    model = save_transformers(MIXTURES[request.param], tmp_path / "hf")
    return request.param, model, open_checkpoint(locate(str(tmp_path / "hf")))


def test_a_gguf_file_has_the_experts_of_the_folder(
    mixture, session, engine_logits, transformers_logits, tmp_path, record_property
):
    architecture, model, folder = mixture
    file = write_gguf(folder, architecture, tmp_path / "m.gguf")
    assert file.config.experts == folder.config.experts
    assert (file.config.architecture, file.config.intermediate_size) == (architecture, 64)
    for name in matrix_shapes(folder.config):
        if "experts" in name or "router" in name:
            np.testing.assert_array_equal(values(file, name), values(folder, name))
    prompts = [np.random.default_rng(1).integers(0, 131, length).tolist() for length in (1, 40, 17)]
    worst = 0.0
    for got, prompt in zip(engine_logits(session, file, prompts), prompts, strict=True):
        want = transformers_logits(model, prompt)
        assert want.std() > 0.3
        worst = max(worst, float(np.abs(got - want).max()))
    record_property("max_abs_difference", worst)
    assert worst < 5e-5


def test_a_step_reads_the_experts_of_a_token(session, mixture):
    _, _, checkpoint = mixture
    config = checkpoint.config
    experts = sum(np.prod(s) for name, s in matrix_shapes(config).items() if "experts." in name)
    others = sum(np.prod(s) for name, s in matrix_shapes(config).items() if "experts." not in name)
    looked_up = 0 if config.tie_embeddings else 131 * 96
    met = experts * config.experts.top_k // config.experts.num_experts
    assert stored_bytes(checkpoint) == pytest.approx(4 * (others - looked_up + met), abs=1)
    with Engine(session, checkpoint, None, OPTIONS) as engine:
        stats = engine.stats()
        # Panels hold 32 rows, and 131 are none of their multiples.
        assert stats.weight_bytes - stats.step_bytes == pytest.approx(4 * (looked_up + experts - met), rel=0.03)


@pytest.mark.parametrize("activations", ["none", "i8_token", "i8_g32"])
@pytest.mark.parametrize("weight_format", ["q4_1", "q8_0"])
def test_experts_with_codes_are_as_their_weights(session, tiny, engine_logits, weight_format, activations):
    formats = {f"layers.{i}.experts.{e}.{name}_proj": weight_format
               for i in range(2) for e in range(6) for name in ("gate", "up", "down")}  # fmt: skip
    checkpoint = tiny(formats, experts=ExpertsConfig(6, 2, True))
    rounded = replace(checkpoint, arrays={**checkpoint.arrays, **{n: values(checkpoint, n) for n in formats}})
    rounded.formats = {}
    prompts = [list(range(40)), [7], list(range(90, 60, -1))]
    for got, want in zip(
        engine_logits(session, checkpoint, prompts, activations=activations),
        engine_logits(session, rounded, prompts),
        strict=True,
    ):
        assert want.std() > 0.3
        # int8 activations move a router's choice now and then, and a token's logits with it.
        error = np.abs(got - want).max(-1) / want.std()
        assert np.median(error) < (1e-4 if activations == "none" else 0.15)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("weight_format", "config"),
    [
        ("gptq_v1_i4_g32", GPTQ),
        ("gptq_v1_i4_g32_act", GPTQ | {"desc_act": True}),
        ("awq_i4_g32", AWQ),
        ("f8e4m3fn_128x128", BLOCKS),
    ],
)
def test_a_folder_of_quantized_experts(mixture, tmp_path, session, tiny, engine_logits, weight_format, config):
    """Every matrix but the router, the table and the head; some formats' rows join, so that gate and up are one
    product."""
    _, _, folder = mixture
    path, arrays = tmp_path / "hf", {}
    settings = json.loads((path / "config.json").read_text())
    tensors = load_file(path / "model.safetensors")
    for name in matrix_shapes(folder.config):
        arrays[name] = values(folder, name)
        if not name.endswith("_proj"):
            continue
        stored = quantize(get_format(weight_format), arrays[name])
        arrays[name] = dequantize(get_format(weight_format), stored, *arrays[name].shape)
        module = module_name(name, settings["model_type"])
        del tensors[f"{module}.weight"]
        for part, array in stored.items():
            tensor = torch.from_numpy(np.array(array))
            is_code = config is BLOCKS and part == "weight"
            stored_name = "weight_scale_inv" if config is BLOCKS and part == "scale" else part
            tensors[f"{module}.{stored_name}"] = tensor.view(torch.float8_e4m3fn) if is_code else tensor
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(settings | {"quantization_config": config}))
    quantized = open_checkpoint(locate(str(path)))
    assert quantized.weight("layers.1.experts.3.down_proj").format.id == weight_format
    rounded = replace(
        tiny(), config=folder.config, arrays=arrays | {n: folder.vector(n) for n in vector_lengths(folder.config)}
    )
    prompts = [list(range(40)), [7]]
    for got, want in zip(
        engine_logits(session, quantized, prompts), engine_logits(session, rounded, prompts), strict=True
    ):
        assert want.std() > 0.3
        assert np.abs(got - want).max() < 1e-4


@pytest.mark.parametrize(("top_k", "max_batch"), [(1, 6), (3, 6), (4, 16)])
def test_steps_by_graphs_choose_the_same_tokens(session, tiny, top_k, max_batch):
    """Of 64 tokens at most: with 16 sequences and 4 experts for each, arrays of two kinds have 64 rows, and only decode
    steps are recorded."""
    rng = np.random.default_rng(4)
    two = replace(GREEDY, n=2, temperature=0.8, seed=5)
    requests = [(rng.integers(0, 128, n).tolist(), two if n in (31, 2) else GREEDY) for n in (70, 5, 31, 3, 2, 55, 1)]
    checkpoint = tiny(experts=ExpertsConfig(7, top_k, True))
    found = {}
    for capture in (False, True):
        options = replace(OPTIONS, max_batch=max_batch, capture=capture, replay_steps=4)
        with Engine(session, checkpoint, None, options) as engine:
            for request in requests:
                engine.add_request(*request)
            outputs = [o for _ in iter(lambda: engine.has_work, False) for o in engine.step()]
            found[capture] = {(o.request, o.sample): [] for o in outputs}
            for output in outputs:
                found[capture][output.request, output.sample].append(output.token_id)
            stats = engine.stats()
    assert found[True] == found[False]
    if max_batch == 16:
        assert 0 < stats.captured_steps < stats.steps
    else:
        assert stats.captured_steps == stats.steps


def test_a_router_keeps_its_activations(session, tiny):
    checkpoint = tiny({"layers.0.router": "q8_0", "layers.1.router": "q8_0"}, experts=ExpertsConfig(32, 2, True))
    with Engine(session, checkpoint, None, replace(OPTIONS, activations="i8_g32")) as engine:
        assert {layer.feed_forward.router.spec.weight_format for layer in engine.requests.layers} == {"q8_0"}


def test_experts_of_one_layer_have_one_format(session, tiny):
    checkpoint = tiny({"layers.1.experts.2.up_proj": "q8_0"}, experts=ExpertsConfig(4, 2, True))
    with pytest.raises(ContractError, match=r"layers\.1\.experts\.\*\.up_proj: wanted one format for all experts"):
        Engine(session, checkpoint, None, OPTIONS)


@pytest.mark.parametrize(
    ("changes", "where", "problem"),
    [
        ({"expert_count": 0}, "qwen3moe.expert_count", "wanted an integer in 1..4096, got 0"),
        ({"expert_count": None}, "qwen3moe.expert_count", "got None"),
        ({"expert_count": 1 << 20}, "qwen3moe.expert_count", "wanted an integer in 0..4096"),
        ({"expert_count": 8}, "blk.0.ffn_gate_inp.weight", "wanted shape (8, 96), got (9, 96)"),
        ({"expert_used_count": 10}, "qwen3moe.expert_used_count", "wanted an integer in 1..9, got 10"),
        ({"expert_used_count": None}, "qwen3moe.expert_used_count", "got nothing"),
        ({"expert_feed_forward_length": None}, "qwen3moe.expert_feed_forward_length", "got nothing"),
        ({"expert_gating_func": 2}, "qwen3moe.expert_gating_func", "not built: wanted 1, got 2"),
        ({"expert_shared_count": 1}, "qwen3moe.expert_shared_count", "not built: wanted 0, got 1"),
        ({"expert_weights_norm": False}, "qwen3moe.expert_weights_norm", "not built: wanted True, got False"),
    ],
)
def test_a_gguf_mixture_that_is_not_built_is_refused(tmp_path, save_transformers, changes, where, problem):
    save_transformers(MIXTURES["qwen3moe"], tmp_path / "hf")
    folder = open_checkpoint(locate(str(tmp_path / "hf")))
    with pytest.raises(FormatError) as caught:
        write_gguf(folder, "qwen3moe", tmp_path / "m.gguf", **changes)
    assert caught.value.where == where
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("changes", "where", "problem"),
    [
        ({"mlp_only_layers": [1]}, "mlp_only_layers", "layers without experts: wanted [], got [1]"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step", "layers without experts: wanted 1, got 2"),
        ({"num_experts_per_tok": 10}, "num_experts_per_tok", "wanted an integer in 1..9, got 10"),
        ({"num_experts": None, "num_local_experts": None}, "num_experts", "got nothing"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob", "wanted true or false"),
    ],
)
def test_a_folder_of_a_mixture_that_is_not_built_is_refused(tmp_path, save_transformers, changes, where, problem):
    save_transformers(MIXTURES["qwen3moe"], tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(FormatError) as caught:
        open_checkpoint(locate(str(tmp_path)))
    assert caught.value.where == where
    assert problem in caught.value.problem


def test_a_tensor_of_three_dimensions_has_a_weight_for_each_expert(tmp_path):
    weight = np.random.default_rng(0).standard_normal((3, 8, 64), np.float32)
    blocks = np.stack([quantize(get_format("q4_0"), each)["blocks"] for each in weight])
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_gguf(tmp_path / "m.gguf").tensors["w"]
    for expert in range(3):
        found = tensor.weight(expert)
        assert (found.n, found.k, found.format.id) == (8, 64, "q4_0")
        np.testing.assert_array_equal(found.tensors["blocks"], blocks[expert])
    with pytest.raises(ContractError, match="0 to 2"):
        tensor.weight(3)
    with pytest.raises(ContractError, match=r"two dimensions, \[N, K\]"):
        tensor.weight()


@pytest.mark.model
@pytest.mark.parametrize("activations", [pytest.param("none", marks=pytest.mark.slow), "i8_g32"])
def test_smollm2_as_a_mixture_says_the_same(tmp_path, session, generate_ids, activations):
    """Each expert is the layer's MLP with its inner channels in another order: what mixes experts up, or loses a
    choice, speaks no English."""
    dense = locate("smollm2")
    write_mixture(dense.path, tmp_path / "mixture.gguf", num_experts=3, top_k=2)
    mixture = open_checkpoint(locate(str(tmp_path / "mixture.gguf")))
    assert mixture.config.experts == ExpertsConfig(3, 2, True)
    tokenizer = load_tokenizer(dense)
    prompts = [tokenizer.encode(p, parse_special=True) for p in ("The capital of France is", "1, 2, 3, 4, 5,")]
    # Further on two tokens are as probable as each other but for the order in which sums are rounded.
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    (want, _), (got, _) = (
        generate_ids(session, checkpoint, prompts, params, activations=activations)
        for checkpoint in (open_checkpoint(dense), mixture)
    )
    assert got == want
    assert tokenizer.decode(got[0]).startswith(" Paris")


@pytest.mark.parametrize(("backend", "arch"), [(CudaBackend(), "sm_90"), (RocmBackend(), "gfx942")])
def test_interpreted_gpu_kernels_agree(session, tiny, engine_logits, backend, arch):
    checkpoint = tiny({f"layers.1.experts.{e}.up_proj": "q8_0" for e in range(5)}, experts=ExpertsConfig(5, 2, False))
    prompts = [[1, 2, 3], list(range(20)), [9]]
    device = DeviceInfo(backend.info.name, 0, arch, arch, 1 << 32, numerics="interpreted")
    with backend.open(device, SessionOptions()) as interpreted:
        theirs = engine_logits(interpreted, checkpoint, prompts)
    for got, want in zip(theirs, engine_logits(session, checkpoint, prompts), strict=True):
        assert want.std() > 0.3
        assert np.abs(got - want).max() < 1e-4
