"""What the engine's tests share: models of transformers to compare with, checkpoints in memory, logits of a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opsocket
from opsocket.cache import BlockManager
from opsocket.operators import Session
from opsocket.quantization import WeightTensor, dequantize, get_format, quantize
from opsocket_engine.batch import assemble
from opsocket_engine.canonical import matrix_shapes, vector_lengths
from opsocket_engine.config import ModelConfig, RopeConfig
from opsocket_engine.engine import Engine
from opsocket_engine.huggingface.weights import module_name
from opsocket_engine.model import Decoder
from opsocket_engine.options import EngineOptions
from opsocket_engine.requests import decoder_requests
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.scheduler import Step
from opsocket_engine.sequence import Chunk
from opsocket_engine.sequence import Sequence as TokenSequence

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # for `mixture`, which writes GGUF files

TINY = ModelConfig(
    architecture="llama",
    hidden_size=96,
    intermediate_size=160,
    num_layers=2,
    num_q_heads=6,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=128,
    rms_norm_eps=1e-5,
    rope=RopeConfig(theta=10000.0, rotary_dim=16),
    max_position=256,
    tie_embeddings=False,
    eos_ids=(2,),
)


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    with opsocket.open("cpu", threads=1) as opened:
        yield opened


@dataclass
class MemoryCheckpoint:
    """A `Checkpoint` whose weights are given as f32 arrays, each stored in a format of choice."""

    config: ModelConfig
    arrays: Mapping[str, np.ndarray]
    formats: Mapping[str, str] = field(default_factory=dict)
    stored: dict[str, WeightTensor] = field(default_factory=dict, init=False, repr=False)

    def has(self, name: str) -> bool:
        return name in self.arrays

    def weight(self, name: str) -> WeightTensor:
        if name == "lm_head" and not self.has(name):
            name = "embed_tokens"
        if name not in self.stored:  # quantizing takes as long as all else that a test does with a real model
            array = self.arrays[name]
            weight_format = get_format(self.formats.get(name, "f32"))
            tensors = {"weight": array} if weight_format.id == "f32" else quantize(weight_format, array)
            self.stored[name] = WeightTensor(weight_format, *array.shape, tensors)
        return self.stored[name]

    def vector(self, name: str) -> np.ndarray:
        return self.arrays[name]


def random_arrays(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under which every layer matters: unit gain, norms near 1, biases that are not zero."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: (rng.standard_normal(shape) / shape[1] ** 0.5).astype(np.float32)
        for name, shape in matrix_shapes(config).items()
    }
    arrays["embed_tokens"] *= config.hidden_size**0.5
    for name, length in vector_lengths(config).items():
        mean = 1.0 if name.endswith("norm") else 0.0
        arrays[name] = (mean + 0.3 * rng.standard_normal(length)).astype(np.float32)
    return arrays


@pytest.fixture(scope="session")
def tiny() -> Callable[..., MemoryCheckpoint]:
    """tiny(formats={}, **changes of the configuration) -> a small random model in memory."""

    def make(formats: Mapping[str, str] | None = None, **changes: Any) -> MemoryCheckpoint:
        config = replace(TINY, **changes)
        return MemoryCheckpoint(config, random_arrays(config), formats or {})

    return make


@pytest.fixture(scope="session")
def requantized() -> Callable[[Any, str], MemoryCheckpoint]:
    """requantized(checkpoint, format) -> the same weights with every layer's matrices in that format, the rest f32."""

    def make(checkpoint: Any, weight_format: str) -> MemoryCheckpoint:
        config = checkpoint.config
        arrays, formats = {}, {}
        for name in matrix_shapes(config):
            weight = checkpoint.weight(name)
            arrays[name] = dequantize(weight.format, weight.tensors, weight.n, weight.k)
            if name.startswith("layers."):
                formats[name] = weight_format
        arrays |= {name: checkpoint.vector(name) for name in vector_lengths(config)}
        return MemoryCheckpoint(config, arrays, formats)

    return make


def transformers_state(checkpoint: Any) -> dict[str, Any]:
    """A checkpoint's weights, dequantized to f32, under the names and in the row order of transformers."""
    import torch

    config = checkpoint.config
    heads = {"q_proj": config.num_q_heads, "k_proj": config.num_kv_heads}

    def in_halves(name: str, rows: np.ndarray) -> np.ndarray:
        kind = name.split(".")[-1].removesuffix("_bias")
        if not config.rope.interleaved or kind not in heads:
            return rows
        pairs = rows.reshape(heads[kind], config.head_dim // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    state = {}
    for name in matrix_shapes(config):
        weight = checkpoint.weight(name)
        values = dequantize(weight.format, weight.tensors, weight.n, weight.k)
        state[f"{module_name(name)}.weight"] = in_halves(name, values)
    for name in vector_lengths(config):
        suffix = "bias" if name.endswith("_bias") else "weight"
        state[f"{module_name(name)}.{suffix}"] = in_halves(name, checkpoint.vector(name))
    if config.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}


@pytest.fixture(scope="session")
def transformers_llama() -> Callable[[Any], Any]:
    """transformers_llama(checkpoint) -> LlamaForCausalLM in f32 with the checkpoint's dequantized weights."""

    def make(checkpoint: Any) -> Any:
        import torch
        import transformers
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        config = checkpoint.config
        theirs = transformers.LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_q_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            max_position_embeddings=config.max_position,
            tie_word_embeddings=config.tie_embeddings,
            attention_bias=config.o_bias,
            mlp_bias=config.mlp_bias,
        )
        with torch.device("meta"):  # drawing random weights takes longer than all that is done with these
            model = transformers.LlamaForCausalLM(theirs)
        model.load_state_dict(transformers_state(checkpoint), assign=True)
        model.model.rotary_emb = LlamaRotaryEmbedding(theirs)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def save_transformers() -> Callable[[Any, Path], Any]:
    """save_transformers(config, folder) -> a random model of transformers, written to the folder too."""

    def save(config: Any, folder: Path) -> Any:
        import torch
        import transformers

        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 1.0 if "embed" in name else parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
                mean = 1.0 if name.endswith("norm.weight") or "layernorm" in name else 0.0
                parameter.normal_(mean, scale)
        model.save_pretrained(folder)
        return model

    return save


@pytest.fixture(scope="session")
def transformers_logits() -> Callable[[Any, Sequence[int]], np.ndarray]:
    """transformers_logits(model, token ids) -> f32[T, V], one row for each token."""

    def compute(model: Any, tokens: Sequence[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return model(torch.tensor([list(tokens)])).logits[0].numpy()

    return compute


@pytest.fixture(scope="session")
def engine_logits() -> Callable[..., list[np.ndarray]]:
    """engine_logits(session, checkpoint, prompts, **engine options) -> f32[T, V] of each prompt, computed together."""

    def compute(session: Session, checkpoint: Any, prompts: Sequence[Sequence[int]], **settings: Any) -> Any:
        lengths = [len(prompt) for prompt in prompts]
        total = sum(lengths)
        options = EngineOptions(max_batch=total, max_step_tokens=total, num_blocks=total, **settings)
        requests = decoder_requests(
            checkpoint.config, lambda name: checkpoint.weight(name).format.id, options, options.num_blocks
        )
        decoder = Decoder(session, checkpoint, requests)
        blocks = BlockManager(options.num_blocks, options.block_size)
        step = Step()
        for i, prompt in enumerate(prompts):
            sequence = TokenSequence(i, SamplingParams(), 0, list(prompt), len(prompt))
            blocks.admit(sequence.key, prompt)
            blocks.grow(sequence.key, len(prompt))
            step.chunks.append(Chunk(sequence, 0, len(prompt)))
        batch = replace(assemble(step, blocks), rows=np.arange(total))
        logits = session.download(decoder.forward(batch))
        return np.split(logits, np.cumsum(lengths)[:-1])

    return compute


@pytest.fixture(scope="session")
def generate_ids() -> Callable[..., Any]:
    """generate_ids(session, checkpoint, prompts, params, **engine options) -> (ids of each completion, stats)."""

    def run(
        session: Session, checkpoint: Any, prompts: Sequence[Sequence[int]], params: SamplingParams, **options: Any
    ) -> Any:
        settings = {"max_batch": 4, "max_step_tokens": 512, "num_blocks": 128} | options
        with Engine(session, checkpoint, None, EngineOptions(**settings)) as engine:
            completions = engine.generate(prompts, params)
            engine.blocks.check()
            assert engine.blocks.num_used == 0
            return [completion.token_ids for completion in completions], engine.stats()

    return run
