"""SmolLM2 in files as the field ships them: its own GGUF with MXFP4 in every layer, and a folder of 8-bit floats with a
scale for each block of 128 by 128. Its width of 576 leaves half a block at the end of every row."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from mixture import rewrite
from safetensors.torch import save_file

from opsocket.quantization import dequantize, get_format, quantize
from opsocket.quantization.gguf_file import open_gguf
from opsocket_engine.checkpoint import open_checkpoint
from opsocket_engine.locate import locate
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.tokenizer import load_tokenizer

pytestmark = pytest.mark.model

PROMPTS = ("The capital of France is", "1, 2, 3, 4, 5,")


@pytest.fixture(scope="module")
def smollm2():
    return locate("smollm2")


def write_mxfp4(source, path) -> None:
    """The model's own file, every matrix of a layer in MXFP4."""

    def of_tensor(tensor):
        if not (tensor.name.startswith("blk.") and len(tensor.shape) == 2):
            return [(tensor.name, tensor.data, tensor.tensor_type)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        blocks = quantize(get_format("mxfp4"), np.ascontiguousarray(values, np.float32))["blocks"]
        return [(tensor.name, blocks, gguf.GGMLQuantizationType.MXFP4)]

    rewrite(source.path, path, of_tensor)


def write_fp8_blocks(model, folder) -> None:
    """transformers' model as a folder whose linear layers are DeepSeek's fp8."""
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    blocks = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": blocks}))
    tensors = {}
    for name, value in model.state_dict().items():
        if name.endswith("_proj.weight"):
            stored = quantize(get_format("f8e4m3fn_128x128"), value.numpy())
            tensors[name] = torch.from_numpy(stored["weight"]).view(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = torch.from_numpy(stored["scale"])
        elif name != "lm_head.weight":
            tensors[name] = value.clone()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("weight_format", ["mxfp4", "f8e4m3fn_128x128"])
def test_a_file_of_it_speaks(
    weight_format,
    smollm2,
    tmp_path,
    session,
    generate_ids,
    transformers_llama,
    transformers_logits,
    record_property,
):
    if weight_format == "mxfp4":
        path = tmp_path / "SmolLM2.MXFP4.gguf"
        write_mxfp4(smollm2, path)
        assert {tensor.format.id for tensor in open_gguf(path).tensors.values()} >= {"mxfp4", "f32"}
    else:
        path = tmp_path / "SmolLM2-FP8"
        write_fp8_blocks(transformers_llama(open_checkpoint(smollm2)), path)
    checkpoint = open_checkpoint(locate(str(path)))
    weight = checkpoint.weight("layers.7.down_proj")
    assert (weight.format.id, weight.n, weight.k) == (weight_format, 576, 1536)
    original = open_checkpoint(smollm2).weight("layers.7.down_proj")
    exact, rounded = (dequantize(w.format, w.tensors, w.n, w.k) for w in (original, weight))
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.985

    tokenizer = load_tokenizer(smollm2)
    prompts = [tokenizer.encode(prompt, parse_special=True) for prompt in PROMPTS]
    tokens, _ = generate_ids(session, checkpoint, prompts, SamplingParams(max_tokens=12, ignore_eos=True))
    model = transformers_llama(checkpoint)
    for prompt, generated in zip(prompts, tokens, strict=True):
        logits = transformers_logits(model, [*prompt, *generated])[len(prompt) - 1 : -1]
        assert (logits.max(-1) - logits[np.arange(12), list(generated)]).max() < 1e-3
    texts = [tokenizer.decode(generated) for generated in tokens]
    record_property("texts", texts)
    assert texts[0].startswith(" Paris")
    assert texts[1].startswith(" 6, 7, 8")
